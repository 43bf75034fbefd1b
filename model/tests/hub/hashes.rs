//! What a file is compared with.

use super::*;

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
        let online = with_cache(&hub, cache.path());
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
