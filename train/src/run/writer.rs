//! Checkpoints on their way to the disk: another thread writes one while the training goes on.
//!
//! At most one is written at a time, and the host's memory holds one at most. The next one waits for it, and so do a
//! stop and the end of a stage: when a run says that it has stopped, its checkpoint is there.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};

use super::folder::Held;
use crate::checkpoint::{Checkpoints, Snapshot};
use crate::error::TrainError;
use crate::logging::say;
use crate::retry::retry;

/// Writes the checkpoints of a run. Dropping it waits for the one that is being written, but not for a disk that is
/// full.
pub(super) struct Writer {
    checkpoints: Arc<Checkpoints>,
    /// The run's folder.
    held: Arc<Held>,
    in_flight: Option<InFlight>,
}

/// A checkpoint that is being written.
struct InFlight {
    thread: JoinHandle<Result<(), TrainError>>,
    /// As long as it is there, a full disk is waited for.
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

    /// Begins to write `snapshot`, when the one before is written.
    ///
    /// # Errors
    /// Those of the one before, as [`wait`](Self::wait).
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

    /// Waits until nothing is being written.
    ///
    /// # Errors
    /// Those of [`Checkpoints::save`]; a disk that was full for ten minutes is one.
    ///
    /// # Panics
    /// With the panic of the thread that wrote.
    pub(super) fn wait(&mut self) -> Result<(), TrainError> {
        let Some(InFlight { thread, patience }) = self.in_flight.take() else {
            return Ok(());
        };
        let written = thread.join();
        drop(patience);
        written.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// As [`wait`](Self::wait) if that takes no time: an error ends the run at the next step, and not at the next
    /// checkpoint.
    ///
    /// # Errors
    /// As there.
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
            // The run ends for another reason, which is the one to report.
            if let Ok(Err(error)) = thread.join() {
                say(format_args!(
                    "warning: the last checkpoint was not written: {error}"
                ));
            }
        }
    }
}
