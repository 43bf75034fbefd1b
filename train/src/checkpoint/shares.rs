//! The moments of the other ranks, on their way into rank 0's checkpoint.
//!
//! Each rank writes its file while it continues to train, into a folder beside the checkpoints, and then the file's
//! checksum, atomically. Rank 0, which writes the checkpoint at the same time, waits for the checksum and links the
//! file into the checkpoint. So all ranks must see the folder of the run. Files that a dead process has left there are
//! removed together with incomplete checkpoints.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::moments::file_of;
use crate::error::{TrainError, io_error};

/// How long rank 0 waits for a rank's file.
const PATIENCE: Duration = Duration::from_secs(600);
/// The pause between two checks for that file.
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn checksum(shares: &Path, rank: usize) -> PathBuf {
    shares.join(format!("{}.sha256", file_of(rank)))
}

/// Makes the file of `rank` in the folder `shares`, which is made if it does not exist; `write` writes the file and
/// returns its checksum.
pub(super) fn leave(
    shares: &Path,
    rank: usize,
    write: impl FnOnce(&Path) -> Result<String, TrainError>,
) -> Result<(), TrainError> {
    // The run's folder itself is not made: if it is gone, it must not be made again.
    for folder in shares.parent().into_iter().chain([shares]) {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io_error(folder)(error));
            }
            _ => {}
        }
    }
    let digest = write(&shares.join(file_of(rank)))?;
    let path = checksum(shares, rank);
    model::atomic_file::write(&path, digest.as_bytes()).map_err(io_error(&path))
}

/// Waits for the file of `rank`, puts it into the checkpoint `folder`, and returns its name and its checksum.
///
/// # Errors
/// [`TrainError::Ranks`] if the file does not come in time; [`TrainError::Io`].
pub(super) fn fetch(
    shares: &Path,
    rank: usize,
    folder: &Path,
) -> Result<(String, String), TrainError> {
    let path = checksum(shares, rank);
    let begun = Instant::now();
    let digest = loop {
        match fs::read_to_string(&path) {
            Ok(digest) => break digest,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error(&path)(error));
            }
            Err(_) if begun.elapsed() > PATIENCE => {
                return Err(TrainError::Ranks(format!(
                    "{}: rank {rank} has not written its moments within {} seconds; the folder of the run must be one \
                     that all ranks see",
                    path.display(),
                    PATIENCE.as_secs()
                )));
            }
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    };
    let name = file_of(rank);
    let (from, to) = (shares.join(&name), folder.join(&name));
    // A link leaves it there for another attempt; not every file system has them.
    fs::hard_link(&from, &to)
        .or_else(|_| fs::copy(&from, &to).map(|_| ()))
        .map_err(io_error(&to))?;
    Ok((name, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_its_checksum_is() {
        let run = tempfile::tempdir().unwrap();
        let shares = run.path().join("checkpoints").join(".shares.partial");
        let whole = run.path().join("whole");
        fs::create_dir(&whole).unwrap();
        let waiting = {
            let (shares, whole) = (shares.clone(), whole.clone());
            thread::spawn(move || fetch(&shares, 3, &whole).unwrap())
        };
        leave(&shares, 3, |path| {
            fs::write(path, "moments").unwrap();
            thread::sleep(Duration::from_millis(50));
            fs::write(path, "moments of rank 3").unwrap();
            Ok("digest".into())
        })
        .unwrap();
        let expected = ("optimizer-3.safetensors".to_owned(), "digest".to_owned());
        assert_eq!(waiting.join().unwrap(), expected);
        let moved = fs::read_to_string(whole.join("optimizer-3.safetensors")).unwrap();
        assert_eq!(moved, "moments of rank 3");
    }
}
