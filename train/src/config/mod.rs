//! What a run does: one TOML file, typed.
//!
//! A configuration is built in layers. A preset (`presets/*.toml`, embedded in the binary) gives
//! every key a value; a user's file overrides some of them; `--set stage3.lr=2e-4` overrides more.
//! The result is written into the run folder and reads back to the same value, so a run can always
//! be repeated from its own folder.
//!
//! The run is the list `[[stages]]`. Each entry has a name, by which the other layers change it (`[stage3]` in
//! a file, `stage3.lr` on the command line), and a kind, which decides what its keys are and their defaults. A
//! list in a file replaces the preset's; an entry with the name of one in the preset takes from there what it
//! leaves out.
//!
//! For all other sections the `tiny` preset doubles as the schema: a key that it lacks is unknown, and a value
//! of another type than its own is wrong. The schema of a stage is made of its kind's options and of
//! [`StageConfig`] in the same way, with their defaults as the values. The alternative, letting serde reject
//! what it does not know, reports neither the full key nor the nearest valid one, and knows no layers.
//!
//! What the teacher's own `config.json` decides (width, vocabulary, rotary embedding) is not here.

mod error;
mod layers;
mod mixer;
mod overlay;
mod paths;
mod source;
mod stage;
mod validate;
mod values;

pub use error::ConfigError;
pub use layers::{PRESETS, Source};
pub use paths::{resolve_path, resolve_text};
pub use source::TextSource;
pub use stage::StageConfig;

use std::fmt;
use std::path::Path;

use burn::tensor::DType;
use model::StudentMixer;
use serde::{Deserialize, Serialize};

/// The resolved configuration of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Name of the run; its folder is `runs/NAME`.
    pub name: String,
    /// Seed of the initialisation and of the data order.
    pub seed: u64,
    /// What the networks compute in.
    pub precision: Precision,
    /// The model to distil.
    pub teacher: Teacher,
    /// The text to distil on.
    pub data: Data,
    /// The mixer that takes attention's place.
    pub student: Student,
    /// AdamW.
    pub optimizer: Optimizer,
    /// What the run does, one stage after the other.
    pub stages: Vec<StageConfig>,
    /// When weights and optimizer state are saved.
    pub checkpoint: Checkpoint,
    /// When progress is printed and, on a GPU, recorded.
    pub log: Log,
    /// When a run that goes wrong stops.
    pub safety: Safety,
    /// What is noticed about the loss, and what is done about it.
    pub guard: Guard,
    /// How several processes share the work.
    pub parallel: Parallel,
    /// How perplexity is measured.
    pub evaluation: Evaluation,
}

/// What the networks compute in. The student's own parameters, the moments and all sums are f32 either
/// way: docs/precision.md has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits throughout.
    F32,
    /// Parameters and activations of both networks in bfloat16.
    Bf16,
}

impl Precision {
    /// Of parameters and activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// `[teacher]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// A folder in Hugging Face format or a GGUF file, which [`resolve_path`] finds, or OWNER/NAME or
    /// OWNER/NAME:FILE.gguf on its hub; OWNER/NAME:Q4_K_M is the GGUF file whose name ends so.
    pub model: String,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Sources of training text, for stages without data of their own.
    pub train: Vec<TextSource>,
    /// Sources of held-out text; empty holds out a part of `train`. Weights count for nothing here.
    pub validation: Vec<TextSource>,
    /// A `tokenizer.json`, its folder or a GGUF file; empty takes the teacher's.
    pub tokenizer: String,
    /// Folder of tokenised text; empty takes the user's cache folder.
    pub cache: String,
    /// Lines and rows without a document that are left out of each text, at most; the next one is an error.
    pub skip_bad_lines: u64,
    /// Whether a document is left out of a text if the same came before in it.
    pub drop_duplicates: bool,
    /// What documents in one training sequence are to each other.
    pub packing: Packing,
    /// Tokens per training sequence, in stages without a context of their own.
    pub context: usize,
}

/// What the documents of a training sequence are to each other. A sequence is cut from one text of all documents either
/// way, with the same order of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// One text: a token reads what came before in its sequence, of other documents too. As published.
    Concatenate,
    /// Each is on its own: states, convolutions, attention and positions begin anew at its first token, and no label
    /// belongs to another document.
    Documents,
}

/// `[student]`: the mixer's kind and options, named as in the published `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Student {
    /// `kind`, and the options of that kind.
    #[serde(flatten)]
    pub mixer: StudentMixer,
    /// 0-based layers that keep the teacher's attention; ascending.
    pub attention_layers: Vec<usize>,
    /// How the mixers start: one of [`model::Initialisation::NAMES`].
    pub init: String,
    /// The folder of a student to start from, in place of the teacher's weights and `init`; empty for these. It has the
    /// sizes that the other keys say.
    pub from: String,
}

/// `[optimizer]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate at each step.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decay: Decay,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
    /// Largest norm of the gradient of each part, before the global one; 0 turns it off.
    pub clip_part: f64,
    /// Largest norm of the gradient of each layer, before the global one and after those of parts; 0 turns it off.
    pub clip_layer: f64,
}

/// Which parameters weight decay applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Those of two dimensions or more: no biases, norms, D.
    Matrices,
    /// Every parameter.
    All,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Optimizer steps between checkpoints.
    pub every: usize,
    /// Newest checkpoints kept.
    pub keep: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// Optimizer steps between printed lines. On a device with a queue also between reads of what steps have
    /// measured: so long `metrics.jsonl`, the progress bar and the notice of a loss that is not finite wait,
    /// and so many queued steps a request to stop.
    pub every: usize,
    /// Whether to write events for TensorBoard, into the folder `tensorboard` of the run folder.
    pub tensorboard: bool,
    /// The port on which Prometheus can ask for the numbers of the last step; 0 for none.
    pub metrics_port: u16,
}

/// `[safety]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Safety {
    /// Non-finite steps in a row after which the run stops.
    pub max_skipped: usize,
}

/// `[guard]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// How many times the median of the losses before a loss must be to be a spike; 0 notices none.
    pub spike: f64,
    /// Losses that the median is of, the last ones of the stage.
    pub window: usize,
    /// What is done about a spike.
    pub action: GuardAction,
}

/// What is done about a spike of the loss, beside saying it. Both that change something read each step's loss as it
/// comes, which costs a device with a queue some of its speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Nothing.
    Log,
    /// The step changes nothing.
    Skip,
    /// The run goes back to the last checkpoint of the stage that was due, and on with the text after the spike.
    RollBack,
}

/// `[parallel]`: nothing of it changes anything in a run of one process, nor what is trained but for the order of sums.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parallel {
    /// Whether each rank keeps the moments of its share of the parameters alone, and updates that (ZeRO-1).
    pub shard_moments: bool,
    /// MiB of gradients or parameters, in f32, that are exchanged at once; a larger parameter is exchanged alone.
    pub bucket_mib: usize,
}

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Tokens per window.
    pub context: usize,
    /// Windows measured; 0 for all of the held-out text.
    pub windows: usize,
    /// Windows per forward pass.
    pub batch: usize,
    /// Optimizer steps of a stage between two measurements within it; 0 measures at the ends of stages alone.
    pub every: usize,
    /// Tasks of `infer eval` that are scored with each measurement, with commas between their names; empty for none.
    pub tasks: String,
    /// The folder with the tasks' data; empty fetches it from the hub.
    pub task_data: String,
    /// The first documents of each task that are scored; 0 for all.
    pub task_limit: usize,
    /// The program `infer`, which scores them; empty takes the one beside this program, or the one that the system finds.
    pub infer: String,
}

impl Config {
    /// The configuration of `source` with `overrides` (each `key=value`, the key dotted) on top,
    /// checked.
    ///
    /// # Errors
    /// Any [`ConfigError`]: each names the file or override, the key, and what is allowed.
    pub fn load(source: Source<'_>, overrides: &[String]) -> Result<Self, ConfigError> {
        layers::resolve(source, overrides)
    }

    /// Checks that every value makes sense, as [`Config::load`] does: for a configuration that was made by hand.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] with the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Ok(validate::validate(self)?)
    }

    /// The configuration as TOML that [`Config::load`] reads back to the same value.
    ///
    /// # Errors
    /// [`ConfigError::Serialise`] when a number is beyond TOML's 63 bits.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(ConfigError::Serialise)
    }

    /// The configuration as [`Config::to_toml`] has it, before it is text.
    ///
    /// # Errors
    /// [`ConfigError::Serialise`].
    pub fn to_table(&self) -> Result<toml::Table, ConfigError> {
        toml::Table::try_from(self).map_err(ConfigError::Serialise)
    }

    /// Writes [`Config::to_toml`] to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`ConfigError::Serialise`]; [`ConfigError::Write`] when the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        model::atomic_file::write(path, self.to_toml()?.as_bytes()).map_err(|source| {
            ConfigError::Write {
                path: path.to_owned(),
                source,
            }
        })
    }

    /// The stage called `name`.
    pub fn stage(&self, name: &str) -> Option<&StageConfig> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Keeps the stages that are named, in the order of the list, and drops the others.
    ///
    /// # Errors
    /// [`ConfigError::UnknownStage`] if there is none of that name; [`ConfigError::OutOfRange`] if no name is
    /// given.
    pub fn choose_stages(&mut self, names: &[String]) -> Result<(), ConfigError> {
        for name in names {
            self.require_stage(name)?;
        }
        self.stages.retain(|stage| names.contains(&stage.name));
        Ok(validate::not_empty(&self.stages)?)
    }

    /// The stage called `name`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownStage`], with the name that is nearest.
    pub fn require_stage(&self, name: &str) -> Result<&StageConfig, ConfigError> {
        self.stage(name).ok_or_else(|| {
            let names = self.stages.iter().map(|stage| stage.name.as_str());
            ConfigError::UnknownStage {
                name: name.to_owned(),
                nearest: error::nearest(name, names.clone()),
                all: names.collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// Tokens of a training sequence of `stage`.
    pub fn context(&self, stage: &StageConfig) -> usize {
        match stage.context {
            0 => self.data.context,
            own => own,
        }
    }

    /// Sources of the training text of `stage`.
    pub fn text<'a>(&'a self, stage: &'a StageConfig) -> &'a [TextSource] {
        if stage.data.is_empty() {
            &self.data.train
        } else {
            &stage.data
        }
    }

    /// Training tokens of an optimizer step of `stage`.
    pub fn tokens_per_step(&self, stage: &StageConfig) -> u64 {
        (stage.batch * self.context(stage)) as u64
    }

    /// Optimizer steps of `stage`: its tokens over those of a step, to the nearest whole step, at least one.
    pub fn steps(&self, stage: &StageConfig) -> usize {
        let per_step = self.tokens_per_step(stage);
        (stage.tokens.saturating_add(per_step / 2) / per_step).max(1) as usize
    }
}

#[cfg(test)]
mod tests;
