//! Batches made ahead, on a thread of their own, while the step before is queued.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use datasets::{Batch, Batches, DataError};

/// Batches that wait for their step.
const WAITING: usize = 2;

/// The batches from one on, in order. The thread that makes them ends when this is dropped.
pub(super) struct Ahead(Receiver<Result<Batch, DataError>>);

impl Ahead {
    /// Those of `batches` from number `first` on.
    pub(super) fn new(batches: Batches, first: u64) -> Self {
        let (sender, receiver) = sync_channel(WAITING);
        thread::spawn(move || {
            for step in first.. {
                let batch = batches.batch(step);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next one.
    ///
    /// # Errors
    /// [`DataError`] if the shards are damaged; the batch after that is not asked for.
    ///
    /// # Panics
    /// After an error.
    pub(super) fn next(&self) -> Result<Batch, DataError> {
        self.0.recv().expect("batches go on up to an error")
    }
}
