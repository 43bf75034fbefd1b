//! Opens a file of text, compressed or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use crate::error::{Result, cannot};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// The largest window of a zstd frame, as a power of two: that of `zstd --ultra --long=31`, the most that
/// zstd writes. The decoder reserves that much memory for a frame that asks for it.
const WINDOW_LOG_MAX: u32 = if usize::BITS == 32 { 30 } else { 31 };

/// The text of a file, decompressed if the name ends in `.gz` or `.zst`.
///
/// A gzip file may have several members and end in zeros, as tapes and some tools leave them; a zstd file
/// may have several frames, skippable ones too, and windows of up to 2 GiB (`--long=31`).
///
/// # Errors
///
/// [`DataError::Io`](crate::DataError::Io) if the file cannot be opened. Reading fails where the file is
/// truncated or corrupt, and, with [`io::ErrorKind::Unsupported`], at a larger window.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    open_counted(path, Arc::default())
}

/// The text of a file, as [`open_text`]; `bytes_read` grows with what is read from the disk.
pub(crate) fn open_counted(
    path: &Path,
    bytes_read: Arc<AtomicU64>,
) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(cannot("open", path))?;
    let file = BufReader::with_capacity(READ_BYTES, CountedFile { file, bytes_read });
    let name = path.to_string_lossy().to_lowercase();
    Ok(if name.ends_with(".gz") {
        let text = Gzip(Some(GzDecoder::new(file)));
        Box::new(BufReader::with_capacity(READ_BYTES, text))
    } else if name.ends_with(".zst") {
        let mut text = zstd::Decoder::with_buffer(file).map_err(cannot("open", path))?;
        text.window_log_max(WINDOW_LOG_MAX)
            .map_err(cannot("open", path))?;
        Box::new(BufReader::with_capacity(READ_BYTES, Zstd(text)))
    } else {
        Box::new(file)
    })
}

/// The members of a gzip file, one after another: the one that is read, or `None` after the last.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.0 else {
                return Ok(0);
            };
            let bytes = member.read(buffer)?;
            if bytes > 0 || buffer.is_empty() {
                return Ok(bytes);
            }
            let Some(member) = self.0.take() else {
                return Ok(0);
            };
            let mut file = member.into_inner();
            match file.fill_buf()?.first() {
                None => return Ok(0),
                Some(0) => only_zeros(&mut file)?,
                Some(_) => self.0 = Some(GzDecoder::new(file)),
            }
        }
    }
}

/// Reads `file` to its end, which must be zeros, as gzip itself accepts them.
fn only_zeros(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|&byte| byte != 0) {
            let message = "neither gzip nor zeros follow its last member";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let length = bytes.len();
        file.consume(length);
    }
}

/// A zstd file, whose decoder does not say what is wrong with a large window.
struct Zstd<'a, R: BufRead>(zstd::Decoder<'a, R>);

impl<R: BufRead> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            if error.to_string().contains("too much memory") {
                let message = "it was compressed with a window of more than 2 GiB; compress it again \
                               with --long=31 or less";
                io::Error::new(io::ErrorKind::Unsupported, message)
            } else {
                error
            }
        })
    }
}

/// Counts the bytes that are read from a file, before they are decompressed.
struct CountedFile {
    file: File,
    bytes_read: Arc<AtomicU64>,
}

impl Read for CountedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
