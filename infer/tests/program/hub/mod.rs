//! Models by their names on the hub, from the user's point of view.

mod datasets;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use self::server::{Hub, Place, REVISION, Site};
use crate::support::student_folder;

const MODEL: &str = "someone/student";
const PHI: &str = "microsoft/phi-1_5";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

/// The program, which makes a text with `home` as the user's folder.
fn infer(home: &Path, endpoint: &str, model: &str) -> Command {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args([
        "generate",
        "--backend",
        "flex",
        "--max-tokens",
        "6",
        "--model",
    ]);
    infer.args([model, "Once upon"]);
    for variable in [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "XDG_CACHE_HOME",
    ] {
        infer.env_remove(variable);
    }
    infer.env("HF_HOME", home).env("HF_ENDPOINT", endpoint);
    infer
}

fn text(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one sentence of a failure.
fn failure(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(output.stdout.is_empty() && said.starts_with("error: "));
    said
}

/// A student's folder, the text that it writes, and a user's folder.
fn given() -> (TempDir, String, TempDir) {
    let folder = student_folder(&[]);
    let home = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let text = text(&infer(home.path(), "nowhere", name).output().unwrap());
    (folder, text, home)
}

/// The folder of [`MODEL`] in the cache.
fn of_model(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--someone--student")
}

fn run(home: &TempDir, hub: &Hub) -> Output {
    infer(home.path(), &hub.endpoint, MODEL).output().unwrap()
}

/// A model without a tokenizer, like the published Phi-Mambas.
#[test]
fn without_a_tokenizer_phi_s_is_used() {
    let (folder, expected, home) = given();
    let weights = ["config.json", WEIGHTS];
    let site = Site::default().with(MODEL, folder.path(), &[TOKENIZER]);
    let hub = site.with(PHI, folder.path(), &[]).open();
    assert_eq!(text(&run(&home, &hub)), expected);
    let of_phi = |path: &str| path.starts_with(&format!("/{PHI}/"));
    let paths: Vec<String> = hub
        .asked()
        .into_iter()
        .map(|request| request.path)
        .collect();
    // No other file of Phi is requested.
    assert!(
        paths
            .iter()
            .any(|path| of_phi(path) && path.ends_with(TOKENIZER))
    );
    assert!(
        !paths
            .iter()
            .any(|path| of_phi(path) && weights.iter().any(|file| path.ends_with(file)))
    );

    // The second time nothing is requested, except for the missing tokenizer if the cache does not know that the model
    // has none.
    let before = hub.asked().len();
    assert_eq!(text(&run(&home, &hub)), expected);
    assert_eq!(hub.asked().len(), before);
    fs::remove_dir_all(of_model(&home).join(".no_exist")).unwrap();
    assert_eq!(text(&run(&home, &hub)), expected);
    let asked: Vec<String> = hub
        .asked()
        .into_iter()
        .map(|request| request.path)
        .collect();
    let info = format!("/api/models/{MODEL}/revision/{REVISION}");
    assert_eq!(asked[before..], [info]);

    // The second time the hub is not needed.
    let mut again = infer(home.path(), "http://127.0.0.1:9", MODEL);
    let again = again.env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(text(&again), expected);

    // A tokenizer by its name.
    let other = tempfile::tempdir().unwrap();
    let mut named = infer(other.path(), &hub.endpoint, MODEL);
    assert_eq!(
        text(&named.args(["--tokenizer", PHI]).output().unwrap()),
        expected
    );

    // Neither model has a tokenizer.
    let site = Site::default().with(MODEL, folder.path(), &[TOKENIZER]);
    let empty = tempfile::tempdir().unwrap();
    let said = failure(&run(&empty, &site.open()));
    for word in [MODEL, PHI, "404", "--tokenizer"] {
        assert!(said.contains(word), "{said}");
    }
}

/// One GGUF file of several, which has its tokenizer inside.
#[test]
fn a_gguf_file_by_its_name() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/gguf-llama");
    let bytes = fs::read(golden.join("model.gguf")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let local = golden.join("model.gguf");
    let expected = infer(home.path(), "nowhere", local.to_str().unwrap()).output();
    let expected = text(&expected.unwrap());
    let mut site = Site::default();
    let names = ["tiny-F16.gguf", "tiny-Q8_0.gguf"];
    let files = names.map(|name| (name.to_owned(), bytes.clone()));
    site.models.insert(MODEL.into(), files.into());
    let hub = site.open();
    let said = failure(&run(&home, &hub));
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
    for name in names {
        let named = format!("{MODEL}:{name}");
        let output = infer(home.path(), &hub.endpoint, &named).output();
        assert_eq!(text(&output.unwrap()), expected);
        let mut offline = infer(home.path(), "http://127.0.0.1:9", &named);
        let offline = offline.env("HF_HUB_OFFLINE", "1").output();
        assert_eq!(text(&offline.unwrap()), expected);
    }
    let fetched = hub.asked().into_iter();
    let fetched = fetched.filter(|request| request.path.ends_with("tiny-F16.gguf"));
    assert!(fetched.count() <= 2, "once, after its size");
}

/// Files that another tool may have left.
#[test]
fn a_tokenizer_is_fetched_to_the_weights_that_are_there() {
    let (folder, expected, home) = given();
    let hub = Site::default().with(MODEL, folder.path(), &[]).open();
    assert_eq!(text(&run(&home, &hub)), expected);
    let snapshot = of_model(&home).join("snapshots").join(REVISION);
    fs::remove_file(snapshot.join(TOKENIZER)).unwrap();
    let before = hub.asked().len();
    assert_eq!(text(&run(&home, &hub)), expected);
    assert!(snapshot.join(TOKENIZER).exists());
    let mut asked = hub.asked().split_off(before);
    asked.retain(|request| !request.path.starts_with("/api/"));
    let paths: Vec<_> = asked.iter().map(|request| &request.path).collect();
    assert!(!paths.is_empty());
    assert!(
        paths.iter().all(|path| path.ends_with(TOKENIZER)),
        "{paths:?}"
    );
}

/// The files that name the tokens that end a text, and the chat template, are fetched with the model.
#[test]
fn the_tokens_that_end_a_text_are_fetched() {
    let (folder, expected, home) = given();
    let tokenizer = ::datasets::Tokenizer::from_folder(folder.path()).unwrap();
    let all = (0..tokenizer.vocab_size()).collect::<Vec<_>>();
    let file = "generation_config.json";
    let text_of = format!("{{\"eos_token_id\": {all:?}}}");
    fs::write(folder.path().join(file), text_of).unwrap();
    let template = "chat_template.jinja";
    fs::write(folder.path().join(template), "{{ messages[0].content }}").unwrap();
    let hub = Site::default().with(MODEL, folder.path(), &[]).open();
    // Every token does.
    assert_ne!(expected, "\n");
    assert_eq!(text(&run(&home, &hub)), "\n");
    let snapshot = of_model(&home).join("snapshots").join(REVISION);
    assert!(snapshot.join(file).exists() && snapshot.join(template).exists());
}

#[test]
fn redirects_are_followed() {
    let (folder, expected, _) = given();
    for place in [Place::Moved, Place::Elsewhere] {
        let home = tempfile::tempdir().unwrap();
        let site = Site {
            place,
            ..Site::default()
        };
        let hub = site.with(MODEL, folder.path(), &[]).open();
        assert_eq!(text(&run(&home, &hub)), expected);
    }
}

#[test]
fn a_token_is_for_the_hub_alone() {
    let (folder, expected, _) = given();
    for place in [Place::Here, Place::Moved, Place::Elsewhere] {
        let home = tempfile::tempdir().unwrap();
        let site = Site {
            place,
            token: Some("hf_secret".into()),
            ..Site::default()
        };
        let hub = site.with(MODEL, folder.path(), &[]).open();
        let mut infer = infer(home.path(), &hub.endpoint, MODEL);
        let output = infer.env("HF_TOKEN", "hf_secret").output().unwrap();
        assert_eq!(text(&output), expected);
        let asked = hub.asked();
        let (of_hub, others): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|request| request.of_hub);
        assert!(!of_hub.is_empty());
        assert!(of_hub.iter().all(|request| request.authorization.is_some()));
        assert_eq!(!others.is_empty(), place == Place::Elsewhere);
        assert!(others.iter().all(|request| request.authorization.is_none()));
    }
}

/// The state that a program leaves if it is killed before the last byte was verified.
#[test]
fn what_came_whole_is_verified_and_not_asked_for_again() {
    let (folder, expected, home) = given();
    let hub = Site::default().with(MODEL, folder.path(), &[]).open();
    let bytes = fs::read(folder.path().join(WEIGHTS)).unwrap();
    let blobs = of_model(&home).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{:x}.part", Sha256::digest(&bytes)));
    // Another file's bytes, and more than there are.
    for wrong in [vec![7; bytes.len()], vec![7; bytes.len() + 1]] {
        fs::write(&part, &wrong).unwrap();
        let output = run(&home, &hub);
        if wrong.len() == bytes.len() {
            let said = failure(&output);
            assert!(said.contains(WEIGHTS) && said.contains("SHA-256"), "{said}");
            assert!(!part.exists());
        } else {
            assert_eq!(text(&output), expected);
        }
    }
    fs::remove_dir_all(of_model(&home).join("snapshots")).unwrap();
    fs::remove_file(part.with_extension("")).unwrap();
    fs::write(&part, &bytes).unwrap();
    let before = hub.asked().len();
    assert_eq!(text(&run(&home, &hub)), expected);
    let mut asked = hub.asked().split_off(before);
    asked.retain(|request| request.path.ends_with(WEIGHTS));
    let ranges: Vec<_> = asked.into_iter().map(|request| request.range).collect();
    assert_eq!(ranges, [Some((0, Some(0)))], "only how large it is");
}

#[test]
fn a_broken_download_is_resumed() {
    let (folder, expected, home) = given();
    let site = Site {
        breaks: true.into(),
        ..Site::default()
    };
    let hub = site.with(MODEL, folder.path(), &[]).open();
    assert_eq!(text(&run(&home, &hub)), expected);
    let half = fs::metadata(folder.path().join(WEIGHTS)).unwrap().len() / 2;
    let asked = hub.asked();
    let downloads = |file: &str, from: usize| {
        let of_file = |path: &str| path.ends_with(&format!("/{file}"));
        let requests = asked.iter().filter(|request| of_file(&request.path));
        requests
            .filter(|request| request.range == Some((from, None)))
            .count()
    };
    assert_eq!(downloads(WEIGHTS, 0), 1, "{asked:?}");
    assert_eq!(downloads(WEIGHTS, half as usize), 1, "{asked:?}");
    // What came whole is not fetched again.
    assert_eq!(downloads("config.json", 0), 1, "{asked:?}");
}

#[test]
fn a_wrong_hash_is_not_believed() {
    let (folder, expected, home) = given();
    let site = Site {
        lies: true,
        ..Site::default()
    };
    let said = failure(&run(&home, &site.with(MODEL, folder.path(), &[]).open()));
    assert!(said.contains(WEIGHTS) && said.contains("SHA-256"), "{said}");
    // Nothing of it is left.
    let size = fs::metadata(folder.path().join(WEIGHTS)).unwrap().len();
    let blobs = home.path().join("hub/models--someone--student/blobs");
    let mut left = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap());
    assert!(left.all(|entry| entry.metadata().unwrap().len() < size));
    let honest = Site::default().with(MODEL, folder.path(), &[]).open();
    assert_eq!(text(&run(&home, &honest)), expected);
}

#[test]
fn a_file_that_cannot_be_had() {
    let (folder, _, home) = given();
    let mut site = Site::default().with(MODEL, folder.path(), &[]);
    let files = site.models.get_mut(MODEL).unwrap();
    files.insert(WEIGHTS.into(), Vec::new());
    let said = failure(&run(&home, &site.open()));
    assert!(said.contains(WEIGHTS) && said.contains("404"), "{said}");
    let unreachable = infer(home.path(), "http://127.0.0.1:9", MODEL).output();
    let said = failure(&unreachable.unwrap());
    assert!(said.contains("http://127.0.0.1:9"), "{said}");
}

#[test]
fn a_token_opens_what_is_closed() {
    let (folder, expected, home) = given();
    let closed = || Site {
        token: Some("hf_secret".into()),
        ..Site::default()
    };
    let hub = closed().with(MODEL, folder.path(), &[]).open();
    let said = failure(&run(&home, &hub));
    assert!(said.contains("401"), "{said}");
    let mut with_token = infer(home.path(), &hub.endpoint, MODEL);
    let with_token = with_token.env("HF_TOKEN", "hf_secret").output();
    assert_eq!(text(&with_token.unwrap()), expected);

    // What `hf auth login` keeps, wherever the cache is.
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    fs::write(&token, "hf_secret\n").unwrap();
    let hub = closed().with(MODEL, folder.path(), &[]).open();
    assert_eq!(text(&run(&home, &hub)), expected);
    let [other, cache] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut elsewhere = infer(home.path(), &hub.endpoint, MODEL);
    let elsewhere = elsewhere.env("HF_HUB_CACHE", cache.path().join("a/hub"));
    assert_eq!(text(&elsewhere.output().unwrap()), expected);
    let mut named = infer(other.path(), &hub.endpoint, MODEL);
    let named = named.env("HF_TOKEN_PATH", &token).output();
    assert_eq!(text(&named.unwrap()), expected);
}

#[test]
fn the_cache_is_where_the_environment_says() {
    let (folder, expected, home) = given();
    let hub = Site::default().with(MODEL, folder.path(), &[]).open();
    let offline = |home: &TempDir| {
        let mut infer = infer(home.path(), &hub.endpoint, MODEL);
        infer.env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let said = failure(&offline(&home));
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
    assert!(hub.asked().is_empty());
    assert_eq!(text(&run(&home, &hub)), expected);
    assert!(
        home.path()
            .join("hub/models--someone--student/snapshots")
            .is_dir()
    );
    assert_eq!(text(&offline(&home)), expected);

    let caches = tempfile::tempdir().unwrap();
    // An address as people write it.
    let mut infer_there = infer(home.path(), &format!("{}/", hub.endpoint), MODEL);
    let there = infer_there.env_remove("HF_HOME");
    let there = there.env("XDG_CACHE_HOME", caches.path()).output();
    assert_eq!(text(&there.unwrap()), expected);
    assert!(
        caches
            .path()
            .join("huggingface/hub/models--someone--student/snapshots")
            .is_dir()
    );
    assert!(
        hub.asked()
            .iter()
            .all(|request| !request.path.starts_with("//"))
    );

    let cache = tempfile::tempdir().unwrap();
    let mut elsewhere = infer(home.path(), &hub.endpoint, MODEL);
    let elsewhere = elsewhere.env("HF_HUB_CACHE", cache.path()).output();
    assert_eq!(text(&elsewhere.unwrap()), expected);
    assert!(
        cache
            .path()
            .join("models--someone--student/snapshots")
            .is_dir()
    );
}
