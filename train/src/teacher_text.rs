//! Text that a teacher writes. A student should write in the teacher's place, so text that the teacher itself would
//! write is training text for it.
//!
//! Rows of tokens are sampled together, at temperature 1 and from all tokens. Each row begins with begin-of-text and
//! has a fixed length; when a document ends, the row continues with the next one. Each file holds the documents of the
//! rows of one batch, as JSON lines. The random number for a token is a function of the seed, the row and the position,
//! and files are written atomically: the same call in the same folder makes the missing files.

use std::path::PathBuf;

use burn::tensor::{Int, Tensor, TensorData};
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::decode::sample::{Choice, Warp};
use kernels::runtime::BackendError;
use model::{CausalLm, Family, atomic_file};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;

use crate::config::{Config, Precision};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::{StopRequest, teacher_and_tokenizer, teacher_of_stages};

/// The file with the settings of a folder. It is hidden, so that it is not read as text.
const SETTINGS: &str = ".settings.json";

/// What is sampled. Other settings give other text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The teacher, as it is configured.
    pub teacher: String,
    /// The precision in which it computes.
    pub precision: Precision,
    /// Tokens of a row.
    pub length: usize,
    /// Rows of a file, sampled together.
    pub rows: usize,
    /// The seed of all draws.
    pub seed: u64,
}

/// Text to be sampled.
#[derive(Debug, Clone)]
pub struct TeacherText {
    /// What is sampled.
    pub settings: Settings,
    /// The teacher and its tokenizer.
    pub config: Config,
    /// Tokens in all, rounded up to whole files.
    pub tokens: u64,
    /// The folder for the files.
    pub folder: PathBuf,
    /// The backend's name, for messages.
    pub backend: String,
    /// Called before each token of a row to ask whether to stop.
    pub stop: StopRequest,
}

/// Sampling from the unchanged distribution.
const AS_IT_IS: Warp = Warp {
    repetition_penalty: 1.0,
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
};

impl TeacherText {
    /// Makes the missing files, and returns the number of files in the folder; `None` if asked to stop.
    ///
    /// # Errors
    /// [`TrainError`] if the teacher cannot be read, its numbers are not finite, the device fails or the folder cannot be
    /// written; [`TrainError::Mismatch`] if the folder holds text of other settings, or the teacher has fewer positions
    /// than a row.
    pub fn execute<B: KernelBackend>(&self, device: &B::Device) -> Result<Option<u64>, TrainError> {
        let (settings, config) = (&self.settings, &self.config);
        if !B::holds(device, config.precision.dtype()) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: self.backend.clone(),
                resumed: None,
            });
        }
        self.check_folder()?;
        let (of_teacher, teacher, tokenizer) = teacher_and_tokenizer::<B>(config, device)?;
        if let Some(positions) = of_teacher.max_positions()
            && settings.length > positions
        {
            return Err(TrainError::Mismatch(format!(
                "rows of {} tokens are asked for, and the teacher has {positions} positions; choose a lower --length",
                settings.length
            )));
        }
        let teacher: CausalLm<B> = teacher_of_stages(teacher, &of_teacher, config.precision);
        self.claim()?;
        let per_file = (settings.rows as u64).saturating_mul(settings.length as u64);
        let files = self.tokens.div_ceil(per_file.max(1));
        for file in 0..files {
            let path = self.folder.join(format!("sampled-{file:06}.jsonl"));
            if path.exists() {
                continue;
            }
            let Some(rows) = self.sample(&teacher, &tokenizer, file, device)? else {
                return Ok(None);
            };
            let text = lines(&rows, &tokenizer)?;
            atomic_file::write(&path, text.as_bytes()).map_err(io_error(&path))?;
            say(format_args!("{} of {files} files", file + 1));
        }
        Ok(Some(files))
    }

    /// Checks that the folder can be written, and that it is new, empty or that of these settings.
    fn check_folder(&self) -> Result<(), TrainError> {
        let (folder, path) = (&self.folder, self.folder.join(SETTINGS));
        atomic_file::check(&path).map_err(io_error(&path))?;
        let holds = if !path.exists() {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            // A killed process may have left a hidden file.
            let is_shown = |name: &str| !name.starts_with('.');
            let mut names = entries.map(|entry| entry.file_name());
            if !names.any(|name| is_shown(&name.to_string_lossy())) {
                return Ok(());
            }
            "other files".to_owned()
        } else if std::fs::read(&path).map_err(io_error(&path))? != self.own_settings() {
            format!("text of other settings, which its {SETTINGS} has")
        } else {
            return Ok(());
        };
        Err(TrainError::Mismatch(format!(
            "{}: holds {holds}; choose another folder by --out",
            folder.display()
        )))
    }

    /// Marks the folder as that of these settings.
    fn claim(&self) -> Result<(), TrainError> {
        let (folder, path) = (&self.folder, self.folder.join(SETTINGS));
        std::fs::create_dir_all(folder).map_err(io_error(folder))?;
        if path.exists() {
            return Ok(());
        }
        atomic_file::write(&path, &self.own_settings()).map_err(io_error(&path))
    }

    /// The content of the file with the settings.
    fn own_settings(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.settings).unwrap_or_default()
    }

    /// The rows of tokens of one file; `None` if asked to stop.
    fn sample<B: KernelBackend>(
        &self,
        teacher: &CausalLm<B>,
        tokenizer: &Tokenizer,
        file: u64,
        device: &B::Device,
    ) -> Result<Option<Vec<Vec<u32>>>, TrainError> {
        let Settings {
            length, rows, seed, ..
        } = self.settings;
        let Some(begin) = tokenizer.prefix() else {
            return Err(TrainError::Mismatch(
                "the tokenizer has neither a begin-of-text nor an end-of-text token, which a text begins behind".into(),
            ));
        };
        let known = tokenizer.vocab_size().min(teacher.vocab_size());
        let first = TensorData::new(vec![begin as i32; rows], [rows, 1]);
        let mut state = teacher.new_state(rows, device);
        let mut logits_bv = teacher.prefill(Tensor::from_data(first, device), &mut state);
        let mut sampled = vec![Vec::with_capacity(length); rows];
        for place in 0..length {
            if self.stop.is_asked() {
                return Ok(None);
            }
            let row = |row: usize| file.wrapping_mul(rows as u64).wrapping_add(row as u64);
            let points = (0..rows).map(|i| point(seed, row(i), place as u64));
            let (tokens, next_b) = choose(logits_bv, &points.collect::<Vec<_>>(), known)?;
            for (row, token) in sampled.iter_mut().zip(tokens) {
                row.push(token);
            }
            if place + 1 == length {
                break;
            }
            logits_bv = teacher.step(next_b, &mut state);
        }
        Ok(Some(sampled))
    }
}

/// A number in [0, 1), which draws the token at `place` of `row`.
fn point(seed: u64, row: u64, place: u64) -> f64 {
    let mixed = [row, place].iter().fold(seed, |mixed, part| {
        SplitMix64::seed_from_u64(mixed).next_u64() ^ part
    });
    let drawn = SplitMix64::seed_from_u64(mixed).next_u64() >> 11;
    drawn as f64 / (1_u64 << 53) as f64
}

/// The tokens, with ids below `known`, that `points` draw from `logits_bv`: on the host, and as `[b]` on the device.
fn choose<B: KernelBackend>(
    logits_bv: Tensor<B, 2>,
    points: &[f64],
    known: usize,
) -> Result<(Vec<u32>, Tensor<B, 1, Int>), TrainError> {
    let choices = points.iter().map(|point| Choice {
        warp: AS_IT_IS,
        point: *point,
    });
    let choices: Vec<Choice> = choices.collect();
    let device = logits_bv.device();
    if let Some(next_b) = kernels::sample(logits_bv.clone(), None, known, &choices) {
        let ids = next_b.clone().try_into_data().map_err(failed)?;
        let tokens: Option<Vec<u32>> = ids.iter::<i64>().map(|id| u32::try_from(id).ok()).collect();
        return Ok((tokens.ok_or_else(not_finite)?, next_b));
    }
    let v = logits_bv.dims()[1];
    let logits = logits_bv.try_into_data().map_err(failed)?;
    let logits: Vec<f64> = logits.iter().collect();
    let rows = logits.chunks(v).zip(points);
    let tokens = rows.map(|(row, point)| drawn(&row[..known], *point));
    let tokens: Option<Vec<u32>> = tokens.collect();
    let tokens = tokens.ok_or_else(not_finite)?;
    let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
    let n = ids.len();
    let next_b = Tensor::from_data(TensorData::new(ids, [n]), &device);
    Ok((tokens, next_b))
}

/// The token at `point` of the cumulative distribution of `logits`; `None` if one of them is not finite.
fn drawn(logits: &[f64], point: f64) -> Option<u32> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |logit: &f64| (logit - largest).exp();
    let whole: f64 = logits.iter().map(weight).sum();
    let mut left = point * whole;
    let mut last = 0;
    for (token, logit) in logits.iter().enumerate() {
        let own = weight(logit);
        if own > 0.0 {
            last = token;
        }
        if left < own {
            break;
        }
        left -= own;
    }
    Some(last as u32)
}

/// The documents of `rows`, each a line.
fn lines(rows: &[Vec<u32>], tokenizer: &Tokenizer) -> Result<String, TrainError> {
    let mut lines = String::new();
    let end = tokenizer.end_of_text();
    for row in rows {
        for document in row.split(|token| Some(*token) == end) {
            let text = tokenizer.decode(document)?;
            if !text.trim().is_empty() {
                lines += &json!({ "text": text }).to_string();
                lines.push('\n');
            }
        }
    }
    Ok(lines)
}

fn not_finite() -> TrainError {
    TrainError::Mismatch(
        "the teacher gives a text no probability (its logits are not finite numbers): its weights are damaged, or it \
         overflows in this precision"
            .into(),
    )
}

fn failed(error: impl std::fmt::Display) -> TrainError {
    TrainError::Device(BackendError::Failed {
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use ::tests::networks::Fast;

    use super::*;
    use crate::config::Source;

    fn sampled(folder: &Path, seed: u64, stop: StopRequest) -> Result<Option<u64>, TrainError> {
        let config = Config::load(Source::Preset("tiny"), &[]).expect("tiny");
        let text = TeacherText {
            settings: Settings {
                teacher: config.teacher.model.clone(),
                precision: config.precision,
                length: 6,
                rows: 2,
                seed,
            },
            config,
            tokens: 20,
            folder: folder.to_owned(),
            backend: "flex".into(),
            stop,
        };
        text.execute::<Fast>(&Default::default())
    }

    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut files: Vec<_> = entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read(entry.path()).expect("a file"))
            })
            .collect();
        files.sort();
        files
    }

    /// Two files of two rows of six tokens, in one piece, and stopped in the second.
    #[test]
    fn text_follows_from_its_seed() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let [whole, pieces, other] = [0; 3].map(|_| tempfile::tempdir().expect("a folder"));
        let never = StopRequest::default;
        assert_eq!(sampled(whole.path(), 1, never()).expect("text"), Some(2));
        let asked = AtomicUsize::new(0);
        let soon = StopRequest::when(move || asked.fetch_add(1, Ordering::Relaxed) >= 8);
        assert_eq!(sampled(pieces.path(), 1, soon).expect("text"), None);
        assert_eq!(files(pieces.path()).len(), 2);
        assert_eq!(sampled(pieces.path(), 1, never()).expect("text"), Some(2));
        assert_eq!(files(pieces.path()), files(whole.path()));
        sampled(other.path(), 2, never()).expect("text");
        assert_ne!(files(other.path())[1], files(whole.path())[1]);
        let refused = sampled(whole.path(), 2, never()).expect_err("other settings");
        assert!(refused.to_string().contains(".settings.json"), "{refused}");
        // A folder with something else is left as it is.
        let foreign = tempfile::tempdir().expect("a folder");
        fs::write(foreign.path().join("config.toml"), "").expect("a file");
        let refused = sampled(foreign.path(), 1, never()).expect_err("other files");
        assert!(refused.to_string().contains("other files"), "{refused}");
        assert_eq!(files(foreign.path()).len(), 1);
        // Behind the settings.
        for (name, file) in &files(whole.path())[1..] {
            let text = std::str::from_utf8(file).expect("UTF-8");
            let mut lines = text.lines();
            let is_document = |line: &str| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                line["text"].is_string()
            };
            assert!(lines.all(is_document), "{name}");
        }
    }

    #[test]
    fn a_point_draws_its_token() {
        let logits: Vec<f64> = [0.5_f64, 0.2, 0.3].iter().map(|p| p.ln() + 7.0).collect();
        for (point, token) in [
            (0.0, 0),
            (0.49, 0),
            (0.51, 1),
            (0.69, 1),
            (0.71, 2),
            (0.999, 2),
        ] {
            assert_eq!(drawn(&logits, point), Some(token), "{point}");
        }
        assert_eq!(drawn(&[0.0, f64::NAN], 0.1), None);
        let points: Vec<f64> = (0..1000).map(|place| point(3, 5, place)).collect();
        let mean = points.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_ne!(point(3, 5, 7), point(3, 7, 5));
        assert_ne!(point(3, 5, 7), point(4, 5, 7));
    }
}
