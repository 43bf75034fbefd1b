//! Verifies that a fetched file is the one on the hub.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Checks that the file has the hash in its `etag`. The hub uses the SHA-256 of large files, and for small files git's
/// hash: the SHA-1 of a line with their length and of their bytes (some mirrors: of the bytes alone). A file with
/// another hash is removed, and is an error. An `etag` of any other form is not checked.
pub(super) fn verify(part: &Path, etag: &str) -> Result<(), String> {
    let said = |error: io::Error| error.to_string();
    let (kind, found) = match etag.len() {
        _ if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => return Ok(()),
        64 => ("SHA-256", vec![hash(part, Sha256::new()).map_err(said)?]),
        40 => {
            let length = fs::metadata(part).map_err(said)?.len();
            let blob = Sha1::new().chain_update(format!("blob {length}\0"));
            let hashes = [blob, Sha1::new()].map(|begun| hash(part, begun).map_err(said));
            let hashes: Result<Vec<_>, _> = hashes.into_iter().collect();
            ("git hash", hashes?)
        }
        _ => return Ok(()),
    };
    if found.iter().any(|found| found.eq_ignore_ascii_case(etag)) {
        return Ok(());
    }
    fs::remove_file(part).map_err(said)?;
    Err(format!(
        "the fetched file has the {kind} {}, but should have {etag}; it is removed, try again",
        found[0]
    ))
}

/// The hash of a file, after what was hashed before, in hexadecimal digits.
fn hash(path: &Path, mut digest: impl Digest + io::Write) -> io::Result<String> {
    io::copy(&mut File::open(path)?, &mut digest)?;
    let bytes = digest.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_that_the_hub_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        for (etag, is_same) in [
            // `git hash-object`, `sha1sum` and `sha256sum` of "hello\n".
            ("ce013625030ba8dba906f756967f9e9ca394464a", true),
            ("f572d396fae9206628714fb2ce00f72e94f2258f", true),
            (
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                true,
            ),
            ("de013625030ba8dba906f756967f9e9ca394464a", false),
            (
                "4891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                false,
            ),
            ("some-other-name", true),
        ] {
            fs::write(&path, "hello\n").unwrap();
            let verified = verify(&path, etag);
            assert_eq!(verified.is_ok(), is_same, "{etag}: {verified:?}");
            assert_eq!(path.exists(), is_same);
        }
    }
}
