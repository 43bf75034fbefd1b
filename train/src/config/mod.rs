//! The configuration of a run: one TOML file with types.
//!
//! A configuration is built in layers. A preset (`presets/*.toml`, embedded in the binary) gives
//! every key a value; a user's file overrides some of them; `--set stage3.lr=2e-4` overrides more.
//! The result is written into the run folder and reads back to the same value, so a run can always
//! be repeated from its own folder.
//!
//! The run is the list `[[stages]]`. Each entry has a name, by which later layers change it (`[stage3]` in a file,
//! `stage3.lr` on the command line), and a kind, which decides which keys it has and their defaults. A list in a file
//! replaces the preset's list; an entry with the name of a stage of the preset takes from that stage the keys that it
//! leaves out.
//!
//! For all other sections the `tiny` preset is also the schema: a key that it does not have is unknown, and a value
//! must have the type of the preset's value. The schema of a stage is built in the same way from its kind's options and
//! from [`StageConfig`], whose defaults are the values. The alternative would be that serde rejects unknown keys; but
//! serde reports neither the full key nor the nearest valid one, and has no layers.
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
    /// How unusual losses are detected, and what is done about them.
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
    /// The dtype of parameters and activations.
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
    /// Sources of held-out text; if empty, a part of `train` is held out. Weights have no effect here.
    pub validation: Vec<TextSource>,
    /// A `tokenizer.json`, its folder or a GGUF file; empty takes the teacher's.
    pub tokenizer: String,
    /// Folder of tokenised text; empty takes the user's cache folder.
    pub cache: String,
    /// The largest number of lines and rows without a document that are skipped in each text; one more is an error.
    pub skip_bad_lines: u64,
    /// Whether a document is left out if an earlier document of the same text has the same content.
    pub drop_duplicates: bool,
    /// Whether the documents of a training sequence read each other.
    pub packing: Packing,
    /// Tokens per training sequence, in stages without a context of their own.
    pub context: usize,
}

/// Whether the documents of a training sequence read each other. With both values, sequences are cut from one text of
/// all documents, and the order of tokens is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// One text, as published: a token also reads earlier documents of its sequence.
    Concatenate,
    /// Each document separately: states, convolutions, attention and positions restart at its first token, and no label
    /// is a token of another document.
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
    /// The folder of a student to start from, instead of from the teacher's weights and `init`; empty for the latter.
    /// The student must have the sizes in the other keys.
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
    /// Parameters with two dimensions or more: not biases, norms and D.
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
    /// Optimizer steps between printed lines. On a device with a queue, also between two reads of the values that steps
    /// have measured: until then `metrics.jsonl`, the progress bar, the detection of a loss that is not finite, and a
    /// request to stop all wait.
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
    /// A loss is a spike if it is above this many times the median of the losses before it; 0 detects no spikes.
    pub spike: f64,
    /// The number of losses in that median, the last ones of the stage.
    pub window: usize,
    /// What is done about a spike.
    pub action: GuardAction,
}

/// What is done about a spike of the loss, besides noting it. `Skip` and `RollBack` read the loss of each step at once,
/// which makes a device with a queue somewhat slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Nothing.
    Log,
    /// The step changes nothing.
    Skip,
    /// The run goes back to the last scheduled checkpoint of the stage, and continues with the text after the spike.
    RollBack,
}

/// `[parallel]`: has no effect on a run of one process, and changes the result only by the order of sums.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parallel {
    /// Whether each rank keeps only the moments of its share of the parameters, and updates only that share (ZeRO-1).
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
    /// The program `infer`, which scores them; if empty, the one in the folder of this program, or else the one in
    /// `PATH`.
    pub infer: String,
}

impl Evaluation {
    /// The names in [`tasks`](Self::tasks), without the blanks around them.
    pub fn task_names(&self) -> Vec<&str> {
        if self.tasks.trim().is_empty() {
            return vec![];
        }
        self.tasks.split(',').map(str::trim).collect()
    }
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

    /// Checks the values, as [`Config::load`] does: for a configuration that was made in code.
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

    /// The configuration as a table, with the content of [`Config::to_toml`].
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
