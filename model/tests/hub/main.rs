//! Models and data sets by name, from a hub on this machine.

mod gguf;
mod hashes;
mod text_files;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::{Hub, WeightsError, locate};
use tempfile::TempDir;
use tests::hub::{Answer, LocalHub, REVISION, Range, listing, part};

const MODEL: &str = "someone/student-tiny";

/// A hub that holds [`MODEL`], with files by their names; those of no bytes are listed but cannot be had.
fn open(files: HashMap<String, Vec<u8>>) -> LocalHub {
    LocalHub::serve(move |path, range| answer(path, range, &files))
}

/// How it is reached, with `cache` as the folder of what was fetched.
fn with_cache(hub: &LocalHub, cache: &Path) -> Hub {
    Hub {
        endpoint: hub.endpoint().to_owned(),
        cache: cache.into(),
        token: None,
        offline: false,
    }
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
    let hub = open(files(&[
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
    ]));
    let online = with_cache(&hub, cache.path());
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
    let hub = open(files(&["config.json", "pytorch_model.bin"]));
    let online = with_cache(&hub, cache.path());
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
        let hub = open(files(&names));
        let online = with_cache(&hub, cache.path());
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
    let hub = open(files(&["config.json", "model.safetensors"]));
    let online = with_cache(&hub, cache.path());
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
    let hub = open(files(&all));
    let folder = with_cache(&hub, cache.path())
        .locate(MODEL)
        .expect("a model");
    for name in all {
        assert!(folder.join(name).exists(), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_had() {
    let cache = TempDir::new().expect("a folder");
    let mut some = files(&[
        "config.json",
        "model.safetensors.index.json",
        "one.safetensors",
    ]);
    let hub = open(some.clone());
    let online = with_cache(&hub, cache.path());
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
    let hub = open(some);
    let folder = with_cache(&hub, cache.path())
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
    let folder = with_cache(&hub, cache.path())
        .locate(MODEL)
        .expect("a model");
    let found = fs::read(folder.join("model.safetensors")).expect("weights");
    assert!(found == expected);
    let asked = hub.requests().into_iter();
    let asked = asked.filter(|path| path.ends_with("model.safetensors"));
    assert_eq!(asked.count(), 4);
}

#[test]
fn no_such_model() {
    let cache = TempDir::new().expect("a folder");
    let hub = open(files(&["config.json"]));
    let online = with_cache(&hub, cache.path());
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
