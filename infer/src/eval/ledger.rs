//! Scores that are kept on disk until an evaluation is done.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::encode::ScoreRequest;
use super::error::{EvalError, cannot};
use super::score::Score;
use model::atomic_file;

/// How often the file is written: the most work that an interruption can lose.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// The first bytes of the file.
const MAGIC: &[u8; 16] = b"mohawk-scores-1\n";
/// The bytes of a record: a key, the log-likelihood, and whether it was greedy.
const RECORD: usize = 16 + 8 + 1;
/// The bytes of the SHA-256 at the end of the file, of everything before it.
const DIGEST: usize = 32;

type Key = [u8; 16];

/// The scores of one model, by request. An evaluation that was interrupted finds here the scores that it
/// has already computed, whatever tasks and limits it is started with.
///
/// The file is replaced whole, at most every ten seconds, and removed when the evaluation is done. A damaged
/// file is ignored. If the file cannot be written, one message says so, and only an interruption would
/// lose work.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    scores: HashMap<Key, Score>,
    saved: Instant,
    has_warned: bool,
}

impl Ledger {
    /// Opens the ledger of the model with this `identity`, in `folder`.
    pub fn open(folder: &Path, identity: &str) -> Self {
        let name = format!("{:.16}.scores", format!("{:x}", Sha256::digest(identity)));
        let path = folder.join(name);
        let scores = fs::read(&path).ok().and_then(|bytes| parse(&bytes));
        Self {
            path,
            scores: scores.unwrap_or_default(),
            saved: Instant::now(),
            has_warned: false,
        }
    }

    /// The score of `request`, if it is known.
    pub fn get(&self, request: &ScoreRequest) -> Option<Score> {
        self.scores.get(&key(request)).copied()
    }

    /// Adds a score, and saves all of them if the last time was long ago.
    pub fn note(&mut self, request: &ScoreRequest, score: Score) {
        self.scores.insert(key(request), score);
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save();
        }
    }

    /// Writes the file. If that fails, the file stays as it was.
    pub fn save(&mut self) {
        self.saved = Instant::now();
        let saved = atomic_file::write(&self.path, &self.bytes());
        let loss = "an interruption would lose what has been scored";
        self.warn(saved.map_err(cannot("write", &self.path)), loss);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (key, score) in &self.scores {
            bytes.extend(key);
            bytes.extend(score.log_likelihood.to_le_bytes());
            bytes.push(score.is_greedy.into());
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// Removes the file, if there is one.
    pub fn close(mut self) {
        let removed = match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let rest = "the next evaluation would resume from it";
        self.warn(removed.map_err(cannot("remove", &self.path)), rest);
    }

    fn warn(&mut self, done: Result<(), EvalError>, meaning: &str) {
        if let Err(error) = done
            && !self.has_warned
        {
            self.has_warned = true;
            eprintln!("{error}; {meaning}");
        }
    }
}

fn key(request: &ScoreRequest) -> Key {
    let mut digest = Sha256::new();
    digest.update((request.scored as u64).to_le_bytes());
    for id in request.ids() {
        digest.update(id.to_le_bytes());
    }
    let mut key = Key::default();
    key.copy_from_slice(&digest.finalize()[..16]);
    key
}

/// Parses a file. `None` if these are not the bytes that a ledger has written.
fn parse(bytes: &[u8]) -> Option<HashMap<Key, Score>> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    let records = content.strip_prefix(MAGIC)?;
    if Sha256::digest(content)[..] != *digest || records.len() % RECORD != 0 {
        return None;
    }
    let record = |bytes: &[u8]| {
        let (key, rest) = bytes.split_first_chunk()?;
        let (log_likelihood, rest) = rest.split_first_chunk()?;
        let score = Score {
            log_likelihood: f64::from_le_bytes(*log_likelihood),
            is_greedy: rest == [1],
        };
        Some((*key, score))
    };
    records.chunks(RECORD).map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32, scored: usize) -> ScoreRequest {
        ScoreRequest::new([id, 2, 3], scored)
    }

    const SCORE: Score = Score {
        log_likelihood: -0.1 - 0.2,
        is_greedy: true,
    };

    #[test]
    fn scores_come_back_exactly_and_to_their_own_request() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), "a model");
        ledger.note(&request(1, 2), SCORE);
        ledger.save();
        let ledger = Ledger::open(folder.path(), "a model");
        assert_eq!(ledger.get(&request(1, 2)), Some(SCORE));
        assert_eq!(ledger.get(&request(1, 1)), None);
        assert_eq!(ledger.get(&request(9, 2)), None);
        let other = Ledger::open(folder.path(), "another model");
        assert_eq!(other.get(&request(1, 2)), None);
        ledger.close();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        other.close();
    }

    #[test]
    fn a_file_that_is_not_as_written_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), "a model");
        ledger.note(&request(1, 2), SCORE);
        ledger.save();
        let whole = fs::read(&ledger.path).unwrap();
        assert!(parse(&whole).is_some());
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_none(), "{length}");
        }
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            assert!(parse(&damaged).is_none(), "{i}");
        }
    }
}
