//! Scores that are kept on disk until an evaluation is done.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::atomic_file;
use sha2::{Digest, Sha256};

use super::encode::ScoreRequest;
use super::error::{EvalError, cannot};
use super::score::Score;

/// How often the file is written: the most work that an interruption can lose.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// The first bytes of the file.
const MAGIC: &[u8; 16] = b"mohawk-scores-2\n";
/// The bytes of a record: a key, the log-likelihood, and the numbers of tokens and of greedy ones.
const RECORD: usize = 16 + 8 + 4 + 4;
/// The bytes of the SHA-256 at the end of the file, of everything before it.
const DIGEST: usize = 32;

type Key = [u8; 16];
type Scores = HashMap<Key, Score>;

/// The saved scores of one model, by request. An evaluation that was interrupted finds here the scores that it has
/// already computed, even if it is started again with other tasks or limits.
///
/// The file is replaced as a whole, at most every ten seconds. Several evaluations of one model may share it: each adds
/// its scores to those that it finds, and removes them when it is done. If the file cannot be written, work is only
/// lost by an interruption, so the caller can continue.
#[derive(Debug)]
pub struct Ledger {
    /// The file; `None` keeps the scores in memory only.
    path: Option<PathBuf>,
    /// The scores that were found, and those that were computed here.
    scores: Scores,
    saved: Instant,
}

impl Ledger {
    /// A ledger without a file, for systems without a cache folder.
    pub fn in_memory() -> Self {
        Self {
            path: None,
            scores: Scores::new(),
            saved: Instant::now(),
        }
    }

    /// Opens the ledger of the model with this `identity`, in `folder`. If its file cannot be read, or was not written
    /// completely by a ledger, the second value is an error; the ledger is then empty, and the file will be replaced.
    pub fn open(folder: &Path, identity: &str) -> (Self, Result<(), EvalError>) {
        // The version is part of the name, so a file of another version is not found.
        let digest = Sha256::digest([MAGIC, identity.as_bytes()].concat());
        let name = format!("{:.16}.scores", format!("{digest:x}"));
        let path = folder.join(name);
        let (scores, read) = match read(&path) {
            Ok(scores) => (scores, Ok(())),
            Err(error) => (Scores::new(), Err(error)),
        };
        let ledger = Self {
            path: Some(path),
            scores,
            ..Self::in_memory()
        };
        (ledger, read)
    }

    /// The score of `request`, if it is known.
    pub fn get(&self, request: &ScoreRequest) -> Option<Score> {
        self.scores.get(&key(request)).copied()
    }

    /// Adds a score, and saves all scores if the last save was long ago.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn note(&mut self, request: &ScoreRequest, score: Score) -> Result<(), EvalError> {
        self.scores.insert(key(request), score);
        if self.saved.elapsed() < SAVE_EVERY {
            return Ok(());
        }
        self.save()
    }

    /// Writes the file, together with scores that other processes have added to it.
    ///
    /// # Errors
    /// [`EvalError::Io`]; the file is then unchanged.
    pub fn save(&mut self) -> Result<(), EvalError> {
        self.saved = Instant::now();
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut all = read(path).unwrap_or_default();
        all.extend(&self.scores);
        write(path, &all)
    }

    /// Removes these scores from the file, and removes the file if it has no others.
    ///
    /// # Errors
    /// [`EvalError::Io`].
    pub fn close(self) -> Result<(), EvalError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut rest = read(path).unwrap_or_default();
        rest.retain(|key, _| !self.scores.contains_key(key));
        if !rest.is_empty() {
            return write(path, &rest);
        }
        match fs::remove_file(path) {
            Err(error) if is_absent(&error) => Ok(()),
            removed => removed.map_err(cannot("remove", path)),
        }
    }
}

/// Whether there is no such file, or not even a folder for it.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The scores in a file; none if there is no file.
fn read(path: &Path) -> Result<Scores, EvalError> {
    match fs::read(path) {
        Err(error) if is_absent(&error) => Ok(Scores::new()),
        bytes => {
            let bytes = bytes.map_err(cannot("open", path))?;
            parse(&bytes).ok_or_else(|| EvalError::DamagedScores { path: path.into() })
        }
    }
}

fn write(path: &Path, scores: &Scores) -> Result<(), EvalError> {
    let written = atomic_file::write(path, &bytes(scores));
    written.map_err(cannot("write", path))
}

/// The content of a file.
fn bytes(scores: &Scores) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (key, score) in scores {
        bytes.extend(key);
        bytes.extend(score.log_likelihood.to_le_bytes());
        bytes.extend(score.tokens.to_le_bytes());
        bytes.extend(score.greedy.to_le_bytes());
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
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

/// Parses the content of a file. `None` if no ledger has written it.
fn parse(bytes: &[u8]) -> Option<Scores> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    let records = content.strip_prefix(MAGIC)?;
    if Sha256::digest(content)[..] != *digest || records.len() % RECORD != 0 {
        return None;
    }
    let record = |bytes: &[u8]| {
        let (key, rest) = bytes.split_first_chunk()?;
        let (log_likelihood, rest) = rest.split_first_chunk()?;
        let (tokens, greedy) = rest.split_first_chunk()?;
        let score = Score {
            log_likelihood: f64::from_le_bytes(*log_likelihood),
            tokens: u32::from_le_bytes(*tokens),
            greedy: u32::from_le_bytes(greedy.try_into().ok()?),
        };
        Some((*key, score))
    };
    records.chunks(RECORD).map(record).collect()
}

#[cfg(test)]
mod tests {
    use ::tests::mutations::each;

    use super::*;

    fn request(id: u32, scored: usize) -> ScoreRequest {
        ScoreRequest::new([id, 2, 3], scored)
    }

    const SCORE: Score = Score {
        log_likelihood: -0.1 - 0.2,
        tokens: 2,
        greedy: 1,
    };

    #[test]
    fn scores_come_back_exactly_and_to_their_own_request() {
        let folder = tempfile::tempdir().unwrap();
        let open = |identity| {
            let (ledger, read) = Ledger::open(folder.path(), identity);
            read.unwrap();
            ledger
        };
        let mut ledger = open("a model");
        ledger.note(&request(1, 2), SCORE).unwrap();
        ledger.save().unwrap();
        let ledger = open("a model");
        assert_eq!(ledger.get(&request(1, 2)), Some(SCORE));
        assert_eq!(ledger.get(&request(1, 1)), None);
        assert_eq!(ledger.get(&request(9, 2)), None);
        let other = open("another model");
        assert_eq!(other.get(&request(1, 2)), None);
        ledger.close().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        other.close().unwrap();
    }

    /// Two ledgers do not lose each other's scores, in whatever order they save and end.
    #[test]
    fn two_evaluations_of_one_model_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Ledger::open(folder.path(), "a model").0;
        let (mut one, mut two) = (open(), open());
        one.note(&request(1, 2), SCORE).unwrap();
        two.note(&request(2, 2), SCORE).unwrap();
        one.save().unwrap();
        two.save().unwrap();
        for id in [1, 2] {
            assert_eq!(open().get(&request(id, 2)), Some(SCORE), "{id}");
        }
        one.close().unwrap();
        assert_eq!(open().get(&request(1, 2)), None);
        assert_eq!(open().get(&request(2, 2)), Some(SCORE));
        two.close().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_not_as_written_is_named_and_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), "a model").0;
        for id in 0..20 {
            ledger.note(&request(id, 2), SCORE).unwrap();
        }
        ledger.save().unwrap();
        let path = ledger.path.unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(parse(&whole).unwrap().len(), 20);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_none(), "{length}");
        }
        each(3000, |mutator| {
            let damaged = mutator.bytes(&whole);
            assert!(damaged == whole || parse(&damaged).is_none());
        });

        fs::write(&path, &whole[1..]).unwrap();
        let (mut again, read) = Ledger::open(folder.path(), "a model");
        let said = read.unwrap_err().to_string();
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        assert_eq!(again.get(&request(1, 2)), None);
        again.note(&request(1, 2), SCORE).unwrap();
        again.save().unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()).unwrap().len(), 1);
    }
}
