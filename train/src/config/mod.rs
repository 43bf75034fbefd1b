//! What a run does: one TOML file, typed.
//!
//! A configuration is built in layers. A preset (`presets/*.toml`, embedded in the binary) gives
//! every key a value; a user's file overrides some of them; `--set stage3.lr=2e-4` overrides more.
//! The result is written into the run folder and reads back to the same value, so a run can always
//! be repeated from its own folder.
//!
//! The `tiny` preset doubles as the schema: it holds every key, so a key that it lacks is unknown
//! and a value of another type than its own is wrong. That keeps names, defaults and reasons in one
//! readable place. The alternative, letting serde reject what it does not know, reports neither the
//! full key nor the nearest valid one, and knows no layers.
//!
//! What the teacher's own `config.json` decides (width, vocabulary, rotary embedding) is not here.

mod error;
mod layers;
mod paths;
mod validate;

pub use error::ConfigError;
pub use layers::{PRESETS, Source};
pub use paths::resolve_path;

use std::fmt;
use std::path::Path;

use burn::tensor::DType;
use model::Activation;
use serde::{Deserialize, Serialize};

use crate::schedule::Wsd;

/// The resolved configuration of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Name of the run; its folder is `runs/NAME`.
    pub name: String,
    /// Seed of the initialisation and of the data order.
    pub seed: u64,
    /// The stages to run, ascending, of 1, 2 and 3.
    pub stages: Vec<u8>,
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
    /// Stage 1, matrix orientation.
    pub stage1: Stage,
    /// Stage 2, hidden-state alignment.
    pub stage2: Stage2,
    /// Stage 3, knowledge distillation.
    pub stage3: Stage3,
    /// When weights and optimizer state are saved.
    pub checkpoint: Checkpoint,
    /// When progress is printed and, on a GPU, recorded.
    pub log: Log,
    /// When a run that goes wrong stops.
    pub safety: Safety,
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
    /// A folder in Hugging Face format, which [`resolve_path`] finds, or OWNER/NAME on its hub.
    pub model: String,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Files and folders of training text; [`resolve_path`] finds them.
    pub train: Vec<String>,
    /// Files and folders of held-out text; empty holds out a part of `train`.
    pub validation: Vec<String>,
    /// A `tokenizer.json` or its folder; empty takes the teacher's.
    pub tokenizer: String,
    /// Folder of tokenised text; empty takes the user's cache folder.
    pub cache: String,
    /// Tokens per training sequence.
    pub context: usize,
}

/// `[student]`: the mixer's options, named as in the published `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Student {
    /// Size of a head's B and C, and one side of its state.
    pub d_state: usize,
    /// Heads of B and C; divides `n_v_heads`.
    pub n_qk_heads: usize,
    /// Heads of x, z and the decay.
    pub n_v_heads: usize,
    /// Taps of the causal convolution.
    pub d_conv: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Inner width over model width.
    pub expand: usize,
    /// What follows the convolution.
    pub activation: Activation,
    /// Whether the two projections have a bias.
    pub bias: bool,
    /// Positions per chunk of the scan: speed and memory, not results.
    pub chunk_size: usize,
    /// 0-based layers that keep the teacher's attention; ascending.
    pub attention_layers: Vec<usize>,
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

/// A stage's budget, schedule and trained parts: all of `[stage1]`, and the common keys of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Training tokens.
    pub tokens: u64,
    /// Sequences per optimizer step.
    pub batch: usize,
    /// Sequences per forward pass; divides `batch`.
    pub micro_batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Share of the steps that warm up.
    pub warmup: f64,
    /// Share of the steps that decay.
    pub decay: f64,
    /// Learning rate at the decay's end.
    pub final_lr: f64,
    /// The parts that train; never empty.
    pub train: Vec<Part>,
}

/// `[stage2]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage2 {
    /// The keys all stages have.
    #[serde(flatten)]
    pub stage: Stage,
    /// Which outputs are compared.
    pub target: Target,
}

/// What stage 2 compares; the same while everything but the mixers is the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Mixer output against attention output: needs no MLP.
    Mixer,
    /// Block output against block output, before the final norm.
    Block,
}

/// `[stage3]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage3 {
    /// The keys all stages have.
    #[serde(flatten)]
    pub stage: Stage,
    /// Divides the student's logits.
    pub temperature: f64,
    /// Weight of the cross-entropy against the true next token.
    pub hard_weight: f64,
    /// Whether the backward pass computes each block's forward pass again instead of keeping it.
    pub recompute: bool,
}

/// A part of the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The mixers, and the attention of layers that keep it.
    Mixer,
    /// The blocks' MLPs.
    Mlp,
    /// The blocks' layer norms and the final one.
    Norm,
    /// The token embedding.
    Embedding,
    /// The language-model head.
    Head,
    /// Everything that the stage's loss reaches.
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
}

/// `[safety]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Safety {
    /// Non-finite steps in a row after which the run stops.
    pub max_skipped: usize,
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

    /// The configuration as TOML that [`Config::load`] reads back to the same value.
    ///
    /// # Errors
    /// [`ConfigError::Serialise`] when a number is beyond TOML's 63 bits.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(ConfigError::Serialise)
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

    /// The keys that all stages have, of one stage.
    ///
    /// # Panics
    /// Unless `number` is 1, 2 or 3.
    pub fn stage(&self, number: u8) -> &Stage {
        match number {
            1 => &self.stage1,
            2 => &self.stage2.stage,
            3 => &self.stage3.stage,
            _ => panic!("MOHAWK has stages 1, 2 and 3, not {number}"),
        }
    }

    /// Optimizer steps of stage `number`: its tokens over those of a batch, to the nearest step.
    ///
    /// # Panics
    /// Unless `number` is 1, 2 or 3.
    pub fn steps(&self, number: u8) -> usize {
        let stage = self.stage(number);
        let per_step = (stage.batch * self.data.context) as u64;
        ((stage.tokens + per_step / 2) / per_step).max(1) as usize
    }

    /// The learning-rate schedule of stage `number`.
    ///
    /// # Panics
    /// Unless `number` is 1, 2 or 3.
    pub fn schedule(&self, number: u8) -> Wsd {
        let stage = self.stage(number);
        Wsd::from_shares(
            stage.lr,
            stage.final_lr,
            stage.warmup,
            stage.decay,
            self.steps(number),
        )
    }
}

impl Stage {
    /// Forward passes per optimizer step.
    pub fn accumulation(&self) -> usize {
        self.batch / self.micro_batch
    }

    /// Whether `part` trains in this stage.
    pub fn trains(&self, part: Part) -> bool {
        self.train.contains(&part) || self.train.contains(&Part::All)
    }
}

#[cfg(test)]
mod tests;
