//! The text of a data set, file by file.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::hub::TextFiles;
use sha2::{Digest, Sha256};

use super::*;

const DATA: &str = "allenai/c4";
/// A first wait that costs no time.
const WAIT: Duration = Duration::from_millis(1);
const FIRST: &str = "en/c4-train.00000-of-00002.json.gz";
const SECOND: &str = "en/c4-train.00001-of-00002.json.gz";

fn text(file: &str) -> Vec<u8> {
    file.repeat(1000).into_bytes()
}

fn listing_of_data() -> Answer {
    listing(
        [
            SECOND,
            "realnewslike/c4-train.00000-of-00001.json.gz",
            FIRST,
        ]
        .into_iter(),
    )
}

/// The file that a request is for, if it is one of the data set at its commit.
fn file_of(path: &str) -> Option<&str> {
    path.strip_prefix(&format!("/datasets/{DATA}/resolve/{REVISION}/"))
}

/// A part of a file, with the SHA-256 of `content` as its name.
fn hashed(bytes: &[u8], range: Range, content: &[u8]) -> Answer {
    let hash = format!("{:x}", Sha256::digest(content));
    part(bytes, range, &format!("X-Linked-Etag: \"{hash}\""))
}

/// A hub that answers request number n, from 0, for a list or for a part of a file by `trouble`, if that has an answer.
fn troubled(
    trouble: impl Fn(usize, Option<&str>, Range) -> Option<Answer> + Send + 'static,
) -> LocalHub {
    let number = AtomicUsize::new(0);
    LocalHub::serve(move |path, range| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let file = file_of(path);
        if let Some(answer) = trouble(number, file, range) {
            return answer;
        }
        match file {
            Some(file) => hashed(&text(file), range, &text(file)),
            None if path == format!("/api/datasets/{DATA}/revision/main") => listing_of_data(),
            None => ("404 Not Found", String::new(), Vec::new()),
        }
    })
}

fn list(hub: &Hub, name: &str) -> TextFiles {
    hub.text_files(name, WAIT)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn files_are_fetched_one_by_one() {
    let cache = TempDir::new().unwrap();
    let server = troubled(|_, _, _| None);
    let hub = with_cache(&server, cache.path());
    let files = list(&hub, "allenai/c4:en");
    assert_eq!(files.files, [FIRST, SECOND]);
    assert_eq!(files.name.to_string(), format!("allenai/c4@{REVISION}:en"));
    assert_eq!(server.requests().len(), 1);
    let path = files.fetch(FIRST).unwrap();
    assert_eq!(fs::read(&path).unwrap(), text(FIRST));
    assert!(path.to_str().unwrap().ends_with(FIRST));
    assert!(!server.requests().iter().any(|path| path.ends_with(SECOND)));

    let asked = server.requests().len();
    assert_eq!(files.fetch(FIRST).unwrap(), path);
    assert_eq!(
        server.requests().len(),
        asked,
        "the second time is the cache's"
    );
    // Without the hub there is what was fetched.
    let offline = Hub {
        offline: true,
        ..hub.clone()
    };
    let there = list(&offline, "allenai/c4:en");
    assert_eq!(there.files, [FIRST]);
    assert_eq!(there.name, files.name);
    assert_eq!(there.fetch(FIRST).unwrap(), path);
    let missing = there.fetch(SECOND).unwrap_err();
    assert!(
        matches!(missing, WeightsError::DatasetOffline { .. }),
        "{missing}"
    );

    let error = hub
        .text_files("allenai/c4:fr", WAIT)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("en, realnewslike"), "{error}");
    let error = hub.text_files("c4", WAIT).err().unwrap().to_string();
    assert!(error.contains("OWNER/NAME:FOLDER"), "{error}");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let cache = TempDir::new().unwrap();
    let server = troubled(|number, _, _| {
        // The first two requests for the list, and two of those for the file.
        let busy = [0, 1, 3, 5].contains(&number);
        busy.then(|| ("503 Service Unavailable", String::new(), Vec::new()))
    });
    let files = list(&with_cache(&server, cache.path()), "allenai/c4:en");
    assert_eq!(server.requests().len(), 3);
    let path = files.fetch(FIRST).unwrap();
    assert_eq!(fs::read(path).unwrap(), text(FIRST));

    // It is not asked for ever.
    let server = troubled(|_, _, _| Some(("503 Service Unavailable", String::new(), Vec::new())));
    let error = with_cache(&server, cache.path())
        .text_files(DATA, WAIT)
        .err();
    let error = error.unwrap().to_string();
    assert!(error.contains("503") && error.contains(DATA), "{error}");
    assert_eq!(server.requests().len(), 8);
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    let cache = TempDir::new().unwrap();
    let server = troubled(|_, file, range| {
        let (from, to) = range?;
        let bytes = text(file?);
        // Each connection for more than the first byte breaks after 5000 bytes.
        if to.is_some() || bytes.len() - from <= 5000 {
            return None;
        }
        let (status, headers, body) = hashed(&bytes, range, &bytes);
        Some((status, format!("{headers}X-Breaks-After: 5000\r\n"), body))
    });
    let files = list(&with_cache(&server, cache.path()), "allenai/c4:en");
    // 34,000 bytes are seven pieces.
    assert_eq!(text(FIRST).len(), 34_000);
    let path = files.fetch(FIRST).unwrap();
    assert_eq!(fs::read(path).unwrap(), text(FIRST));
}

#[test]
fn another_content_is_refused_and_not_kept() {
    let cache = TempDir::new().unwrap();
    let server = troubled(|number, file, range| {
        let file = file?;
        // The first time that it is fetched: its head, and the rest.
        (number < 3).then(|| hashed(&text("something else, as long as it"), range, &text(file)))
    });
    let files = list(&with_cache(&server, cache.path()), "allenai/c4:en");
    let error = files.fetch(FIRST).unwrap_err().to_string();
    assert!(
        error.contains("SHA-256") && error.contains(FIRST),
        "{error}"
    );
    assert_eq!(
        server.requests().len(),
        3,
        "it is not tried again by itself"
    );
    let path = files.fetch(FIRST).unwrap();
    assert_eq!(fs::read(path).unwrap(), text(FIRST));
}

#[test]
fn a_refusal_says_what_to_do() {
    let cache = TempDir::new().unwrap();
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let server = troubled(move |_, _, _| Some((status, String::new(), Vec::new())));
        let error = with_cache(&server, cache.path())
            .text_files(DATA, WAIT)
            .err();
        let error = error.unwrap().to_string();
        assert!(
            error.contains(&status[..3]) && error.contains("HF_TOKEN"),
            "{error}"
        );
        assert_eq!(server.requests().len(), 1, "it is not asked again");
    }
}
