//! An entry of `[[stages]]`.

use serde::{Deserialize, Serialize};

use super::TextSource;
use crate::schedule::Schedule;
use crate::stages::{Kind, Rates};

/// An entry of `[[stages]]`: the keys that every stage has, and those of its kind and of its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageConfig {
    /// What the stage is called, in this run and in what it writes; no two have the same.
    pub name: String,
    /// `kind`, and the keys of that kind.
    #[serde(flatten)]
    pub kind: Kind,
    /// Training tokens.
    pub tokens: u64,
    /// Sequences per optimizer step.
    pub batch: usize,
    /// Sequences per forward pass; divides `batch`.
    pub micro_batch: usize,
    /// Tokens per sequence; 0 is `data.context`.
    pub context: usize,
    /// Sources of training text; empty is `data.train`.
    pub data: Vec<TextSource>,
    /// `schedule`, and the keys of that schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Peak learning rates by part. A number in a configuration stands for all parts that train.
    pub lr: Rates,
}

/// The learning rate of a stage for which a configuration gives none.
const LR: f64 = 1e-4;

impl StageConfig {
    /// A stage of `kind` with all defaults. Name and tokens have no default: they are empty and 0.
    pub fn new(kind: Kind, schedule: Schedule) -> Self {
        Self {
            name: String::new(),
            tokens: 0,
            batch: 4,
            micro_batch: 1,
            context: 0,
            data: vec![],
            lr: Rates::new(kind.trains(), LR),
            kind,
            schedule,
        }
    }

    /// Forward passes per optimizer step.
    pub fn accumulation(&self) -> usize {
        self.batch / self.micro_batch
    }

    /// The learning rates of 0-based `step` of `steps`.
    pub fn lr_at(&self, step: usize, steps: usize) -> Rates {
        self.lr.map(|peak| self.schedule.lr(peak, step, steps))
    }
}
