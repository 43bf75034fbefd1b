//! Files that the tests of several modules use.

use std::fs;
use std::path::{Path, PathBuf};

/// The path of a file of the bundled model or text.
pub(crate) fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

/// Writes a file, creates the folders above it, and returns its path.
pub(crate) fn write(folder: impl AsRef<Path>, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.as_ref().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}
