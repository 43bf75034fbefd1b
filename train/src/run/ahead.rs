//! Batches made ahead, on a thread of their own, while the step before is queued.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use datasets::{Batch, DataError};

/// Batches that wait for their step.
const WAITING: usize = 2;

/// The batches from one on, in order. The thread that makes them ends when this is dropped.
pub(super) struct Ahead {
    batches: Receiver<Result<Batch, DataError>>,
    /// Until it has ended.
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Those that `make` makes of the numbers from `first` on.
    pub(super) fn new(
        make: impl Fn(u64) -> Result<Batch, DataError> + Send + 'static,
        first: u64,
    ) -> Self {
        let (sender, batches) = sync_channel(WAITING);
        let thread = thread::spawn(move || {
            for step in first.. {
                let batch = make(step);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            batches,
            thread: Some(thread),
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// [`DataError`] if the shards are damaged; the batch after that is not asked for.
    ///
    /// # Panics
    /// As the thread has, if it has; and after an error.
    pub(super) fn next(&mut self) -> Result<Batch, DataError> {
        let ended = match self.batches.recv() {
            Ok(batch) => return batch,
            Err(_) => self.thread.take().map(JoinHandle::join),
        };
        match ended {
            Some(Err(panic)) => resume_unwind(panic),
            _ => panic!("batches go on up to an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64) -> Batch {
        Batch {
            ids: vec![number as i32],
            labels: vec![0],
            batch: 1,
            context: 1,
        }
    }

    #[test]
    fn batches_come_in_order() {
        let mut ahead = Ahead::new(|number| Ok(batch(number)), 5);
        for number in 5..20 {
            assert_eq!(ahead.next().unwrap(), batch(number));
        }
    }

    #[test]
    #[should_panic(expected = "no batch 7")]
    fn a_panic_is_told_as_it_was() {
        let make = |number| match number {
            7 => panic!("no batch 7"),
            _ => Ok(batch(number)),
        };
        let mut ahead = Ahead::new(make, 6);
        assert_eq!(ahead.next().unwrap(), batch(6));
        let _ = ahead.next();
    }
}
