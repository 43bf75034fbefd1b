//! Models and data sets by name, from a hub on this machine.

mod text_files;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use model::{Hub, WeightsError, locate};
use tempfile::TempDir;

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const MODEL: &str = "someone/student-tiny";

/// A hub that holds [`MODEL`].
struct LocalHub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// The bytes of a file that are asked for: from the first, up to and with the last.
type Range = Option<(usize, Option<usize>)>;

/// What a hub answers: a status, headers, and a body.
type Answer = (&'static str, String, Vec<u8>);

impl LocalHub {
    /// With files by their names; those of no bytes are listed but cannot be had.
    fn open(files: HashMap<String, Vec<u8>>) -> Self {
        Self::serve(move |path, range| answer(path, range, &files))
    }

    fn serve(answer: impl Fn(&str, Range) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        // Ends with the test program.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                log.lock()
                    .expect("a log")
                    .push(exchange(stream, &answer).unwrap_or_default());
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            requests,
        }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("a log").clone()
    }

    fn with_cache(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: cache.into(),
            token: None,
            offline: false,
        }
    }
}

/// Answers one request, and returns its path.
fn exchange(
    mut stream: TcpStream,
    answer: &impl Fn(&str, Range) -> Answer,
) -> std::io::Result<String> {
    let lines: Vec<String> = BufReader::new(stream.try_clone()?)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let range = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": bytes=")?;
        let (from, to) = value.split_once('-')?;
        name.eq_ignore_ascii_case("range")
            .then(|| (from.parse().unwrap_or(0), to.parse().ok()))
    });
    let (status, headers, body) = answer(&path, range);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    // The connection breaks after so many bytes.
    let breaks = headers.split("X-Breaks-After: ").nth(1);
    let breaks = breaks.and_then(|rest| rest.lines().next()?.parse().ok());
    stream.write_all(&body[..breaks.unwrap_or(length)])?;
    Ok(path)
}

/// The answer of the hub, whose ETags here say nothing of the files.
fn answer(path: &str, range: Range, files: &HashMap<String, Vec<u8>>) -> Answer {
    let listings = ["main", REVISION].map(|name| format!("/api/models/{MODEL}/revision/{name}"));
    if listings.iter().any(|listing| path == listing) {
        return listing(files.keys().map(String::as_str));
    }
    let file = path.strip_prefix(&format!("/{MODEL}/resolve/{REVISION}/"));
    match file
        .and_then(|file| files.get(file))
        .filter(|bytes| !bytes.is_empty())
    {
        None => ("404 Not Found", String::new(), Vec::new()),
        Some(bytes) => part(
            bytes,
            range,
            &format!("ETag: \"{}\"", path.replace('/', "-")),
        ),
    }
}

/// What the hub says of a model with these files, and one more.
fn listing<'a>(names: impl Iterator<Item = &'a str>) -> Answer {
    let names = names.chain(["README.md"]);
    let siblings: Vec<_> = names
        .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
        .collect();
    let siblings = siblings.join(",");
    let body = format!("{{\"sha\":\"{REVISION}\",\"siblings\":[{siblings}]}}");
    ("200 OK", String::new(), body.into_bytes())
}

/// A part of a file, with one header more.
fn part(bytes: &[u8], range: Range, header: &str) -> Answer {
    let (from, to) = range.unwrap_or((0, None));
    let to = to.map_or(bytes.len(), |last: usize| last + 1);
    let headers = format!(
        "{header}\r\nX-Repo-Commit: {REVISION}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        bytes.len()
    );
    ("206 Partial Content", headers, bytes[from..to].to_vec())
}

fn files(names: &[&str]) -> HashMap<String, Vec<u8>> {
    let content = |name: &str| {
        if name.ends_with("index.json") {
            br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}"#.to_vec()
        } else {
            name.repeat(1000).into_bytes()
        }
    };
    names
        .iter()
        .map(|name| (name.to_string(), content(name)))
        .collect()
}

#[test]
fn fetched_once_then_found() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&[
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
    ]));
    let online = hub.with_cache(cache.path());
    let folder = online.locate(MODEL).expect("a model");
    assert!(folder.ends_with(format!(
        "models--someone--student-tiny/snapshots/{REVISION}"
    )));
    let asked = hub.requests();
    // Of the two forms of the weights one is enough.
    assert!(asked.iter().any(|path| path.ends_with("/tokenizer.json")));
    assert!(
        !asked
            .iter()
            .any(|path| path.ends_with("/pytorch_model.bin"))
    );
    for (name, bytes) in files(&["config.json", "model.safetensors", "tokenizer.json"]) {
        assert_eq!(fs::read(folder.join(name)).unwrap(), bytes);
    }
    assert_eq!(online.locate(MODEL).expect("the same"), folder);
    assert_eq!(
        hub.requests().len(),
        asked.len(),
        "the second time is the cache's"
    );
    let offline = Hub {
        offline: true,
        ..online
    };
    assert_eq!(offline.locate(MODEL).expect("the same"), folder);
}

/// As the published Phi-Mambas are.
#[test]
fn without_a_tokenizer() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&["config.json", "pytorch_model.bin"]));
    let online = hub.with_cache(cache.path());
    let folder = online.locate(MODEL).expect("a model");
    assert!(folder.join("pytorch_model.bin").exists());
    // The hub is gone, and what was fetched is still good.
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online
    };
    assert_eq!(gone.locate(MODEL).expect("the same"), folder);
}

/// A model that was fetched by another tool or an earlier version: what it may have beside its weights is asked for
/// once.
#[test]
fn what_is_missing_beside_the_weights() {
    for optional in [&["generation_config.json", "tokenizer.json"][..], &[]] {
        let cache = TempDir::new().expect("a folder");
        let names = [&["config.json", "model.safetensors"], optional].concat();
        let hub = LocalHub::open(files(&names));
        let online = hub.with_cache(cache.path());
        let folder = online.locate(MODEL).expect("a model");
        let of_model = cache.path().join("models--someone--student-tiny");
        let _ = fs::remove_dir_all(of_model.join(".no_exist"));
        for name in optional {
            fs::remove_file(folder.join(name)).expect("removed");
        }
        let offline = Hub {
            offline: true,
            ..online.clone()
        };
        let before = hub.requests().len();
        assert_eq!(offline.locate(MODEL).expect("the same"), folder);
        assert_eq!(hub.requests().len(), before);
        assert_eq!(online.locate(MODEL).expect("the same"), folder);
        for name in ["generation_config.json", "tokenizer.json"] {
            let is_there = folder.join(name).exists();
            assert_eq!(is_there, optional.contains(&name), "{name}");
            let note = of_model.join(".no_exist").join(REVISION).join(name);
            assert_eq!(note.exists(), !is_there, "{name}");
        }
        let asked = hub.requests().len();
        assert!(asked > before);
        assert_eq!(online.locate(MODEL).expect("the same"), folder);
        assert_eq!(hub.requests().len(), asked, "it is asked once");
    }
}

/// A link of the cache whose file was removed does not give way to another form of the weights.
#[cfg(unix)]
#[test]
fn weights_that_were_removed_are_fetched_again() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&["config.json", "model.safetensors"]));
    let online = hub.with_cache(cache.path());
    let folder = online.locate(MODEL).expect("a model");
    let weights = folder.join("model.safetensors");
    fs::remove_file(fs::canonicalize(&weights).expect("a file")).expect("removed");
    fs::write(folder.join("pytorch_model.bin"), "another").expect("written");
    assert_eq!(online.locate(MODEL).expect("the same"), folder);
    assert!(weights.exists());
}

#[test]
fn in_shards() {
    let cache = TempDir::new().expect("a folder");
    let all = [
        "config.json",
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    ];
    let hub = LocalHub::open(files(&all));
    let folder = hub.with_cache(cache.path()).locate(MODEL).expect("a model");
    for name in all {
        assert!(folder.join(name).exists(), "{name}");
    }
}

/// A repository of one GGUF file is a model, and of several each has its name.
#[test]
fn gguf_files() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&["one.gguf"]));
    let online = hub.with_cache(cache.path());
    let offline = |hub: &Hub| Hub {
        offline: true,
        ..hub.clone()
    };
    let nothing = offline(&online).locate(MODEL).expect_err("nothing cached");
    assert!(matches!(nothing, WeightsError::Offline { .. }));
    let file = online.locate(MODEL).expect("a model");
    assert!(file.ends_with(format!("snapshots/{REVISION}/one.gguf")));
    assert_eq!(fs::read(&file).unwrap(), files(&["one.gguf"])["one.gguf"]);
    let asked = hub.requests().len();
    let named = format!("{MODEL}:one.gguf");
    for hub in [&online, &offline(&online)] {
        assert_eq!(hub.locate(&named).expect("the same"), file);
    }
    assert_eq!(
        hub.requests().len(),
        asked,
        "what has a name is the cache's"
    );
    assert_eq!(online.locate(MODEL).expect("the same"), file);
    assert_eq!(
        hub.requests().len(),
        asked + 1,
        "only the list is asked for again"
    );
    assert_eq!(offline(&online).locate(MODEL).expect("the same"), file);
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online
    };
    assert_eq!(gone.locate(MODEL).expect("the same"), file);

    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&["a-Q4.gguf", "deep/a-Q8.gguf"]));
    let online = hub.with_cache(cache.path());
    let message = |name: &str| {
        let error = online.locate(name).expect_err("no model");
        assert!(matches!(error, WeightsError::Fetch { .. }), "{error}");
        error.to_string()
    };
    for name in [MODEL.to_owned(), format!("{MODEL}:b.gguf")] {
        let said = message(&name);
        assert!(
            said.contains("a-Q4.gguf") && said.contains("deep/a-Q8.gguf"),
            "{said}"
        );
        assert!(said.contains("OWNER/NAME:"), "{said}");
    }
    let named = format!("{MODEL}:deep/a-Q8.gguf");
    let missing = offline(&online).locate(&named).expect_err("nothing cached");
    assert!(missing.to_string().contains(&named), "{missing}");
    for name in ["a-Q4.gguf", "deep/a-Q8.gguf"] {
        let file = online.locate(format!("{MODEL}:{name}")).expect("a file");
        assert!(file.ends_with(format!("snapshots/{REVISION}/{name}")));
        // Whichever is in the cache, the hub has several.
        assert!(message(MODEL).contains("several"));
    }

    // A model of the usual form stays one, and one without its weights says what there is.
    let names = ["config.json", "model.safetensors", "a.gguf"];
    for (names, is_whole) in [
        (&names[..], true),
        (&names[1..], true),
        (&[names[0], names[2]][..], false),
    ] {
        let cache = TempDir::new().expect("a folder");
        let hub = LocalHub::open(files(names));
        let found = hub.with_cache(cache.path()).locate(MODEL);
        match found {
            Ok(place) => assert!(is_whole && place.is_file() != names.contains(&"config.json")),
            Err(error) => assert!(
                !is_whole && error.to_string().contains(":a.gguf"),
                "{error}"
            ),
        }
    }
}

/// The tags of llama.cpp and ollama, which are the ends of the files' names.
#[test]
fn gguf_tags() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&[
        "config.json",
        "m-Q4_K_M.gguf",
        "m-IQ4_XS.gguf",
        "m-F16.gguf",
        "deep/m-f16.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
    ]));
    let online = hub.with_cache(cache.path());
    let offline = Hub {
        offline: true,
        ..online.clone()
    };
    let named = |tag: &str| format!("{MODEL}:{tag}");
    let missing = offline.locate(named("Q4_K_M")).expect_err("nothing cached");
    assert!(matches!(missing, WeightsError::Offline { .. }));
    let file = online.locate(named("q4_k_m")).expect("a file");
    assert!(file.ends_with(format!("snapshots/{REVISION}/m-Q4_K_M.gguf")));
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online.clone()
    };
    for hub in [&online, &offline, &gone] {
        assert_eq!(hub.locate(named("Q4_K_M")).expect("the same"), file);
    }

    for (tag, words) in [
        ("Q4_XS", ["ends in Q4_XS", "m-IQ4_XS.gguf"]),
        ("f16", ["m-F16.gguf", "deep/m-f16.gguf"]),
        ("Q8_0", ["m-Q8_0 is split into 2", "--merge"]),
        (
            "m-Q8_0-00001-of-00002.gguf",
            ["m-Q8_0 is split into 2", "--merge"],
        ),
    ] {
        let error = online.locate(named(tag)).expect_err("no model");
        assert!(matches!(error, WeightsError::Fetch { .. }), "{error}");
        let said = error.to_string();
        for word in words {
            assert!(said.contains(word), "{tag}: {said}");
        }
    }
    let asked = hub.requests();
    assert!(asked.iter().all(|path| !path.contains("m-Q8_0")));

    // The only model of a repository, in parts.
    let hub = LocalHub::open(files(&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]));
    let cache = TempDir::new().expect("a folder");
    let error = hub.with_cache(cache.path()).locate(MODEL);
    let said = error.expect_err("no model").to_string();
    assert!(said.contains("m is split into 2"), "{said}");
}

#[test]
fn a_file_that_cannot_be_had() {
    let cache = TempDir::new().expect("a folder");
    let mut some = files(&[
        "config.json",
        "model.safetensors.index.json",
        "one.safetensors",
    ]);
    let hub = LocalHub::open(some.clone());
    let online = hub.with_cache(cache.path());
    let error = online.locate(MODEL).expect_err("a shard is missing");
    assert!(matches!(error, WeightsError::Fetch { .. }));
    let error = error.to_string();
    assert!(
        error.contains("two.safetensors") && error.contains("404"),
        "{error}"
    );
    // Half a model is none.
    let offline = Hub {
        offline: true,
        ..online.clone()
    };
    assert!(matches!(
        offline.locate(MODEL),
        Err(WeightsError::Offline { .. })
    ));

    some.insert("two.safetensors".into(), vec![1]);
    let hub = LocalHub::open(some);
    let folder = hub
        .with_cache(cache.path())
        .locate(MODEL)
        .expect("the rest");
    assert!(folder.join("two.safetensors").exists());
    let again = hub
        .requests()
        .iter()
        .any(|path| path.ends_with("one.safetensors"));
    assert!(!again, "what was fetched is kept");
}

/// One that is overloaded for a moment. What breaks off is taken up in the same way, as in `text_files.rs`.
#[test]
fn a_hub_that_recovers() {
    let cache = TempDir::new().expect("a folder");
    let files = files(&["config.json", "model.safetensors"]);
    let expected = files["model.safetensors"].clone();
    // The first request for it asks for its size, and so does the first of the second time.
    let requests = AtomicUsize::new(0);
    let hub = LocalHub::serve(move |path, range| {
        let is_weights = path.ends_with("model.safetensors");
        let request = if is_weights {
            requests.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        if request == 1 {
            ("503 Service Unavailable", String::new(), vec![])
        } else {
            answer(path, range, &files)
        }
    });
    let folder = hub.with_cache(cache.path()).locate(MODEL).expect("a model");
    let found = fs::read(folder.join("model.safetensors")).expect("weights");
    assert!(found == expected);
    let asked = hub.requests().into_iter();
    let asked = asked.filter(|path| path.ends_with("model.safetensors"));
    assert_eq!(asked.count(), 4);
}

#[test]
fn no_such_model() {
    let cache = TempDir::new().expect("a folder");
    let hub = LocalHub::open(files(&["config.json"]));
    let online = hub.with_cache(cache.path());
    let message = |name: &str| online.locate(name).expect_err("no model").to_string();
    let weightless = message(MODEL);
    assert!(weightless.contains("pytorch_model.bin"), "{weightless}");
    let unknown = message("someone/else");
    assert!(
        unknown.contains(&online.endpoint) && unknown.contains("404"),
        "{unknown}"
    );
    let asked = hub.requests().len();
    for name in [
        "",
        "student",
        "./student",
        "../a/b",
        "runs/tiny/student",
        "/a/b",
        "a/",
        "a/b c",
        "a/b:c d",
        "a/b:../c.gguf",
        "a/\u{e9}",
    ] {
        let error = online.locate(name).expect_err("no model");
        assert!(matches!(error, WeightsError::NoSuchModel { .. }), "{name}");
    }
    assert_eq!(hub.requests().len(), asked);

    let offline = Hub {
        offline: true,
        ..online.clone()
    };
    let error = offline
        .locate(MODEL)
        .expect_err("nothing cached")
        .to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online.clone()
    };
    let error = gone.locate(MODEL).expect_err("no hub").to_string();
    assert!(error.contains(&gone.endpoint), "{error}");
    let nonsense = Hub {
        endpoint: "no address".into(),
        ..online
    };
    let error = nonsense.locate(MODEL).expect_err("no address");
    assert!(matches!(error, WeightsError::Fetch { .. }), "{error}");
}

#[test]
fn a_folder_is_itself() {
    let folder = TempDir::new().expect("a folder");
    assert_eq!(locate(folder.path()).expect("a folder"), folder.path());
}

/// A file is compared with the first hash that the hub says, whatever it redirects to: large files by SHA-256,
/// small ones by git's.
#[test]
fn the_first_hash_counts() {
    const CONFIG: &[u8] = b"hello\n";
    const GIT: &str = "ETag: \"ce013625030ba8dba906f756967f9e9ca394464a\"";
    const WEIGHTS: &[u8] = b"abc";
    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const OTHER: &str = "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34";
    const ELSEWHERE: &str = "1123456789abcdef0123456789abcdef01234567";
    let commit = |commit: &str| format!("X-Repo-Commit: {commit}\r\n");
    for (config, weights, says_hash, commit, error) in [
        (CONFIG, WEIGHTS, true, commit(REVISION), None),
        (CONFIG, b"def", true, commit(REVISION), Some("SHA-256")),
        (CONFIG, b"def", true, String::new(), Some("SHA-256")),
        (
            b"hallo\n",
            WEIGHTS,
            true,
            commit(REVISION),
            Some("git hash"),
        ),
        // As of a repository that was renamed, and of others, that say so or do not.
        (CONFIG, WEIGHTS, false, commit(REVISION), None),
        (
            CONFIG,
            b"def",
            false,
            commit(ELSEWHERE),
            Some("another repository"),
        ),
        (CONFIG, b"def", false, String::new(), Some("X-Repo-Commit")),
    ] {
        let hub = LocalHub::serve(move |path, range| {
            let file =
                |model: &str, file: &str| path == format!("/{model}/resolve/{REVISION}/{file}");
            if path.starts_with("/api/") {
                listing(["config.json", "model.safetensors"].into_iter())
            } else if file(MODEL, "config.json") {
                part(config, range, GIT)
            } else if file(MODEL, "model.safetensors") {
                let there = format!("/someone/other/resolve/{REVISION}/model.safetensors");
                let hash = format!("X-Linked-Etag: \"{HASH}\"\r\n");
                let hash = if says_hash { hash } else { String::new() };
                (
                    "302 Found",
                    format!("{hash}Location: {there}\r\n"),
                    Vec::new(),
                )
            } else {
                // The other repository tells the truth of what it has.
                let own = if weights == WEIGHTS { HASH } else { OTHER };
                let (status, headers, body) =
                    part(weights, range, &format!("X-Linked-Etag: \"{own}\""));
                let same = format!("X-Repo-Commit: {REVISION}\r\n");
                (status, headers.replace(&same, &commit), body)
            }
        });
        let cache = TempDir::new().expect("a folder");
        let online = hub.with_cache(cache.path());
        let found = online.locate(MODEL);
        match error {
            None => {
                let folder = found.expect("a model");
                assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
            }
            Some(kind) => {
                let error = found.expect_err("another file").to_string();
                assert!(error.contains(kind), "{error}");
                let offline = Hub {
                    offline: true,
                    ..online
                };
                assert!(offline.locate(MODEL).is_err(), "what was refused was kept");
            }
        }
    }
}
