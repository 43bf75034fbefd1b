//! Text from standard input.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result, cannot};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// Writes standard input into a file in `folder`, which is created if it does not exist, and returns the file's path.
///
/// The name of the file is the SHA-256 of its content. So if the same text comes again, its tokens are found, and a run
/// can be repeated from the file. If the first character after blanks is `{`, the text is treated as JSON lines
/// (`.jsonl`), otherwise as one document (`.txt`). The input must not be compressed.
///
/// # Errors
///
/// [`DataError::Io`] if the input cannot be read or the file not be written, [`DataError::NoDocuments`] if the input
/// is empty.
pub fn keep_standard_input(folder: &Path) -> Result<PathBuf> {
    keep(io::stdin().lock(), folder)
}

fn keep(mut input: impl Read, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(cannot("create", folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot("write to", folder))?;
    let mut hasher = Sha256::new();
    let mut first = None;
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let read = match input.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => &bytes[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(cannot("read", Path::new("standard input"))(error)),
        };
        hasher.update(read);
        first = first.or_else(|| {
            read.iter()
                .find(|byte| !byte.is_ascii_whitespace())
                .copied()
        });
        file.write_all(read).map_err(cannot("write to", folder))?;
    }
    let Some(first) = first else {
        return Err(DataError::NoDocuments {
            name: "standard input's".into(),
        });
    };
    let ending = if first == b'{' { "jsonl" } else { "txt" };
    let path = folder.join(format!("{:x}.{ending}", hasher.finalize()));
    // An existing file is kept, because its tokens are found by its modification time.
    if !path.exists() {
        file.as_file().sync_all().map_err(cannot("write", &path))?;
        file.persist(&path)
            .map_err(|error| cannot("write", &path)(error.error))?;
        readable(&path)?;
    }
    Ok(path)
}

/// Temporary files are their owner's alone; this one is kept.
fn readable(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(path, mode).map_err(cannot("write", path))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::source::{Documents, source_files};

    #[test]
    fn it_becomes_a_file_named_by_its_content() {
        let folder = TempDir::new().unwrap();
        let kept = |text: &str| keep(text.as_bytes(), &folder.path().join("new"));
        let lines = kept("\n{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
        let documents = Documents::new(source_files(std::slice::from_ref(&lines)).unwrap());
        assert_eq!(documents.collect::<Result<Vec<_>>>().unwrap(), ["a", "b"]);

        let text = kept("It was the best of times").unwrap();
        assert!(text.extension().is_some_and(|ending| ending == "txt"));
        let modified = fs::metadata(&text).unwrap().modified().unwrap();
        assert_eq!(kept("It was the best of times").unwrap(), text);
        assert_eq!(fs::metadata(&text).unwrap().modified().unwrap(), modified);
        assert_eq!(fs::read_dir(text.parent().unwrap()).unwrap().count(), 2);

        let nothing = kept(" \n").unwrap_err();
        assert!(
            matches!(nothing, DataError::NoDocuments { .. }),
            "{nothing}"
        );
    }
}
