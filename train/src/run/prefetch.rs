//! Makes batches ahead of their steps, on another thread.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The most batches that wait for their steps.
const WAITING: usize = 2;

/// The time between two calls of `gives_up` while a batch is waited for.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The batches from one number on, in order. The thread that makes them ends when this is dropped.
pub(super) struct Prefetch<T, E> {
    batches: Receiver<Result<T, E>>,
    /// `None` after it has ended.
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static, E: Send + 'static> Prefetch<T, E> {
    /// The batches that `make` returns for the numbers from `first` on.
    pub(super) fn new(make: impl Fn(u64) -> Result<T, E> + Send + 'static, first: u64) -> Self {
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

    /// The next batch. While there is none, because its text may have to be fetched, `gives_up` is called again and
    /// again; if it returns true, the result is `None`.
    ///
    /// # Errors
    /// The error of `make`, for example if shards are damaged. There is no batch after that.
    ///
    /// # Panics
    /// With the panic of `make`; or after an error.
    pub(super) fn next(&mut self, gives_up: impl Fn() -> bool) -> Result<Option<T>, E> {
        loop {
            match self.batches.recv_timeout(ASK_EVERY) {
                Ok(batch) => return batch.map(Some),
                Err(RecvTimeoutError::Timeout) if gives_up() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            _ => panic!("no batch comes after an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use datasets::{Batch, DataError};

    use super::*;

    type Batches = Prefetch<Batch, DataError>;

    fn batch(number: u64) -> Batch {
        Batch {
            ids: vec![number as i32],
            labels: vec![0],
            starts: None,
            batch: 1,
            context: 1,
        }
    }

    #[test]
    fn batches_come_in_order() {
        let mut batches = Batches::new(|number| Ok(batch(number)), 5);
        for number in 5..20 {
            assert_eq!(batches.next(|| false).unwrap(), Some(batch(number)));
        }
    }

    #[test]
    fn a_wait_can_be_given_up() {
        let (fetched, fetches) = channel::<()>();
        let make = move |number| {
            let _ = fetches.recv();
            Ok(batch(number))
        };
        let mut batches = Batches::new(make, 3);
        assert_eq!(batches.next(|| true).unwrap(), None);
        // A batch that was given up is not lost: the next call returns it.
        fetched.send(()).unwrap();
        assert_eq!(batches.next(|| false).unwrap(), Some(batch(3)));
    }

    #[test]
    #[should_panic(expected = "no batch 7")]
    fn a_panic_is_passed_on() {
        let make = |number| {
            assert!(number != 7, "no batch 7");
            Ok(batch(number))
        };
        let mut batches = Batches::new(make, 6);
        assert_eq!(batches.next(|| false).unwrap(), Some(batch(6)));
        let _ = batches.next(|| false);
    }
}
