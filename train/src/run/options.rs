//! The options of a run, and how it ended.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
use crate::summary::Summary;

/// A configuration, and what a run needs beside it.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What to do.
    pub config: Config,
    /// The run folder.
    pub folder: PathBuf,
    /// Whether to resume from the newest checkpoint in the folder, or from the beginning if there is none yet. A
    /// finished run stays as it is.
    pub resume: bool,
    /// Whether to resume although the teacher, the tokenizer, the text or the settings of stages that have begun have
    /// changed since the checkpoint. The changes are noted in the metrics and in the summary, and the teacher is
    /// measured again. The same holds for a checkpoint of an earlier version, which does not say what it was made from.
    pub accept_changes: bool,
    /// Whether to show the terminal dashboard.
    pub dashboard: bool,
    /// The backend's name, for the record.
    pub backend: String,
    /// The number of steps after which their losses are read, recorded and shown. `None` chooses by the device: every
    /// step on a CPU, and `log.every` steps together on a device with a queue.
    pub read_every: Option<usize>,
    /// Called to ask whether to stop with a checkpoint: before each step; before each batch of an evaluation; while a
    /// step waits for text that is fetched; and while mixers are fitted to the teacher, before each layer of each
    /// batch. If ranks share the run, each is asked once in each step, and all stop after the same step.
    pub stop: StopRequest,
}

/// Whether a run is asked to stop.
#[derive(Clone)]
pub struct StopRequest(Arc<dyn Fn() -> bool + Send + Sync>);

impl StopRequest {
    /// The run is asked to stop when `asked` returns true.
    pub fn when(asked: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(asked))
    }

    /// The run is asked to stop once another thread has set `flag`.
    pub fn on(flag: Arc<AtomicBool>) -> Self {
        Self::when(move || flag.load(Ordering::Relaxed))
    }

    /// Whether it is asked now.
    pub(crate) fn is_asked(&self) -> bool {
        (self.0)()
    }
}

impl Default for StopRequest {
    /// The run is never asked to stop.
    fn default() -> Self {
        Self::when(|| false)
    }
}

impl fmt::Debug for StopRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopRequest")
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All stages done; the student is exported.
    Finished(Summary),
    /// Stopped on request, with a checkpoint to resume from.
    Stopped,
}
