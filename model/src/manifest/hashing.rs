//! SHA-256 of files that are read, and of what is written.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 20;

/// A writer that hashes what it passes to another writer. The file need not be read again for its hash, and a
/// fault of the disk shows when the file is later compared with that hash.
pub struct Hashing<W> {
    writer: W,
    digest: Sha256,
}

impl<W: Write> Hashing<W> {
    /// Of what will be written to `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            digest: Sha256::new(),
        }
    }

    /// The SHA-256 of all that was written, in hexadecimal digits.
    pub fn finish(self) -> String {
        format!("{:x}", self.digest.finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.writer.write(bytes)?;
        self.digest.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The SHA-256 of a file in hexadecimal digits. The file is read in pieces.
///
/// # Errors
/// What the system says, or that `path` is no regular file: reading a device or a pipe may never end.
pub fn hash(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    let kind = fs::metadata(path)?;
    if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE.min(usize::try_from(kind.len()).unwrap_or(PIECE) + 1)];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(format!("{:x}", digest.finalize())),
            Ok(n) => digest.update(&piece[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
