//! Writes checkpoints to the disk on another thread while the training continues.
//!
//! At most one checkpoint is written at a time, and the host's memory has at most one. The next checkpoint waits for
//! it, and so do a stop and the end of a stage: when a run reports that it has stopped, its checkpoint is on the disk.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};

use super::folder::Held;
use crate::checkpoint::{Checkpoints, Snapshot};
use crate::error::TrainError;
use crate::logging::say;
use crate::retry::retry;

/// Writes the checkpoints of a run. Dropping it waits for the checkpoint that is being written, but not for a full
/// disk.
pub(super) struct Writer {
    checkpoints: Arc<Checkpoints>,
    /// The run's folder.
    held: Arc<Held>,
    in_flight: Option<InFlight>,
}

/// A checkpoint that is being written.
struct InFlight {
    thread: JoinHandle<Result<(), TrainError>>,
    /// While this exists, the thread waits for a full disk.
    patience: Sender<()>,
}

impl Writer {
    pub(super) fn new(checkpoints: Arc<Checkpoints>, held: Arc<Held>) -> Self {
        Self {
            checkpoints,
            held,
            in_flight: None,
        }
    }

    /// Starts to write `snapshot`, after the checkpoint before it is written.
    ///
    /// # Errors
    /// The errors of the checkpoint before, as [`wait`](Self::wait) returns them.
    pub(super) fn write(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        self.wait()?;
        let (patience, end) = channel();
        let (checkpoints, held) = (self.checkpoints.clone(), self.held.clone());
        let thread = thread::spawn(move || {
            retry(
                |time| end.recv_timeout(time) == Err(RecvTimeoutError::Timeout),
                || checkpoints.save(&snapshot, || held.check()),
            )
        });
        self.in_flight = Some(InFlight { thread, patience });
        Ok(())
    }

    /// Waits until no checkpoint is being written.
    ///
    /// # Errors
    /// The errors of [`Checkpoints::save`]; also for a disk that was full for ten minutes.
    ///
    /// # Panics
    /// If the thread that wrote has panicked, with the same panic.
    pub(super) fn wait(&mut self) -> Result<(), TrainError> {
        let Some(InFlight { thread, patience }) = self.in_flight.take() else {
            return Ok(());
        };
        let written = thread.join();
        drop(patience);
        written.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Like [`wait`](Self::wait), but only if the writing has ended: so an error ends the run at the next step, and not
    /// only at the next checkpoint.
    ///
    /// # Errors
    /// The errors of [`wait`](Self::wait).
    pub(super) fn check(&mut self) -> Result<(), TrainError> {
        let is_done = |in_flight: &InFlight| in_flight.thread.is_finished();
        if self.in_flight.as_ref().is_some_and(is_done) {
            self.wait()
        } else {
            Ok(())
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(InFlight { thread, patience }) = self.in_flight.take() {
            drop(patience);
            // The run ends with another error, which is the one to report.
            if let Ok(Err(error)) = thread.join() {
                say(format_args!(
                    "warning: the last checkpoint was not written: {error}"
                ));
            }
        }
    }
}
