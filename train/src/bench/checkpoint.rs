//! How much a checkpoint slows down the steps during which it is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use datasets::Batch;
use kernels::TrainBackend;
use kernels::runtime::synchronise;
use model::{ModelConfig, PhiMamba};
use serde::Serialize;
use walkdir::WalkDir;

use super::measure::median;
use crate::checkpoint::{Checkpoints, Progress, Snapshot};
use crate::config::Config;
use crate::error::{TrainError, io_error};
use crate::guard::Guard;
use crate::optimizer::AdamW;
use crate::provenance::Provenance;

/// Checkpoints that are written, each after as many steps without one.
const ROUNDS: usize = 5;

/// Steps with and without a checkpoint beside them, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct CheckpointCost {
    /// Seconds of the median step while none is written.
    pub(super) step_seconds: f64,
    /// Seconds of the median step while another thread writes one.
    pub(super) step_seconds_while_written: f64,
    /// Number of steps in the second figure.
    pub(super) steps_while_written: usize,
    /// Median time in seconds that a step waits while a checkpoint's values are copied into the host's memory.
    pub(super) read_seconds: f64,
    /// Median time in seconds to write a checkpoint.
    pub(super) write_seconds: f64,
    /// The size of one.
    pub(super) bytes: u64,
}

impl CheckpointCost {
    /// The additional time of a step while a checkpoint is written, as a share of a step.
    pub(super) fn overhead(&self) -> f64 {
        self.step_seconds_while_written / self.step_seconds - 1.0
    }
}

/// The state that is written, and the place for it.
pub(super) struct Subject<'a> {
    /// A folder on the disk that is measured. What is written into it is removed again.
    pub(super) folder: &'a Path,
    pub(super) config: &'a Config,
    /// The name of the stage.
    pub(super) stage: &'a str,
    pub(super) student: &'a ModelConfig,
}

/// Times `steps` steps without a checkpoint, and the steps during which some are written. `step` does one step on a
/// batch of `batches`.
pub(super) fn measure<B: TrainBackend>(
    subject: &Subject<'_>,
    mut student: PhiMamba<B>,
    optimizer: &mut AdamW<B::InnerBackend>,
    batches: &[Batch],
    steps: usize,
    device: &B::Device,
    mut step: impl FnMut(PhiMamba<B>, &mut AdamW<B::InnerBackend>, &Batch) -> PhiMamba<B>,
) -> Result<(PhiMamba<B>, CheckpointCost), TrainError> {
    fs::create_dir_all(subject.folder).map_err(io_error(subject.folder))?;
    let own = tempfile::Builder::new()
        .prefix("checkpoints-")
        .tempdir_in(subject.folder)
        .map_err(io_error(subject.folder))?;
    let stages = vec![subject.stage.to_owned()];
    let checkpoints = Arc::new(Checkpoints::new(own.path().to_owned(), 1, stages));
    let inputs = Provenance {
        backend: String::new(),
        tokenizer: String::new(),
        teacher_folder: String::new(),
        teacher: BTreeMap::new(),
        held_out: None,
        texts: BTreeMap::new(),
        caches: BTreeMap::new(),
        config: subject.config.to_table()?,
    };
    let mut progress = Progress {
        stage: subject.stage.to_owned(),
        step: 0,
        tokens: 0,
        stage_seconds: 0.0,
        seconds: 0.0,
        skipped: 0,
        skipped_in_a_row: 0,
        stage_skipped: 0,
        passed_over: 0,
        roll_backs: 0,
        measured_step: 0,
        loss: None,
        teacher_perplexity: 1.0,
        guard: Guard::default(),
        log: None,
        finished: vec![],
        notes: vec![],
    };
    let mut batches = batches.iter().cycle();
    let mut timed = |student: PhiMamba<B>, optimizer: &mut AdamW<B::InnerBackend>| {
        let batch = batches.next().expect("a cycle has no end");
        let begun = Instant::now();
        let student = step(student, optimizer, batch);
        synchronise::<B>(device)?;
        Ok::<_, TrainError>((student, begun.elapsed().as_secs_f64()))
    };
    let (mut off, mut on, mut reads, mut writes) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        for _ in 0..steps.div_ceil(ROUNDS) {
            let seconds;
            (student, seconds) = timed(student, optimizer)?;
            off.push(seconds);
        }
        // Another name each time: one that is there is not written again.
        progress.step = round;
        let begun = Instant::now();
        let snapshot = Snapshot::take(&progress, &inputs, subject.student, &student, optimizer);
        reads.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let checkpoints = Arc::clone(&checkpoints);
        let thread = thread::spawn(move || {
            let saved = checkpoints.save(&snapshot, || Ok(()));
            (saved, begun.elapsed().as_secs_f64())
        });
        loop {
            let (after, seconds) = timed(student, optimizer)?;
            student = after;
            // A step that outlasts the writing overlapped with it only partly; the first such step counts, since there
            // may be no other.
            let is_done = thread.is_finished();
            if !is_done || on.len() < round {
                on.push(seconds);
            }
            if is_done {
                break;
            }
        }
        let (saved, seconds) = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        saved?;
        writes.push(seconds);
    }
    let files = WalkDir::new(own.path()).into_iter().flatten();
    let files = files.filter(|entry| entry.file_type().is_file());
    let bytes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
    let cost = CheckpointCost {
        step_seconds: median(off),
        steps_while_written: on.len(),
        step_seconds_while_written: median(on),
        read_seconds: median(reads),
        write_seconds: median(writes),
        bytes: bytes.sum(),
    };
    Ok((student, cost))
}
