//! Tokens on their way from the device to the host, while the device works on what is queued behind them.
//!
//! A GPU that waits until the host has read a token, and has queued the next step, stands still for that time at each
//! token. So a read is queued, then the step behind it, and then the host waits for the read. A backend that shares the
//! host's memory computes as it is called: there, a read is done when it is queued.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "wgpu")]
mod wgpu;

use std::fmt;
use std::pin::Pin;
use std::thread;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Int, Tensor, TensorData, try_read_sync};

type Read = Result<TensorData, ExecutionError>;

/// A read that is queued; see [`queue_read`].
pub struct QueuedRead(Option<Pin<Box<dyn Future<Output = Read> + Send>>>);

impl QueuedRead {
    /// A read whose result `reading` waits for, from a host that is not made to wait before.
    fn new(reading: impl Future<Output = Read> + Send + 'static) -> Self {
        Self(Some(Box::pin(reading)))
    }

    /// Waits for the data, `[b]`.
    ///
    /// # Errors
    /// The backend's, if they cannot be read from the device.
    pub fn wait(mut self) -> Result<TensorData, ExecutionError> {
        let reading = self.0.take().expect("a read that nobody has waited for");
        try_read_sync(reading).expect("a host that can wait")
    }
}

/// The device writes to memory of the host, which others may get when it is given back.
impl Drop for QueuedRead {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take().filter(|_| !thread::panicking()) {
            let _ = try_read_sync(reading);
        }
    }
}

impl fmt::Debug for QueuedRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueuedRead")
    }
}

/// The op, as backends compute it.
pub trait QueueRead: Backend {
    /// See [`queue_read`].
    fn queue_read(ids: Tensor<Self, 1, Int>) -> QueuedRead {
        let read = ids.try_into_data();
        QueuedRead::new(async { read })
    }
}

by_default!(QueueRead for ndarray, flex, autodiff);

/// Queues a read of `ids [b]` as they are now, behind what the thread has queued before. What it queues later does not have
/// to be done when the ids come.
pub fn queue_read<B: QueueRead>(ids: Tensor<B, 1, Int>) -> QueuedRead {
    B::queue_read(ids)
}
