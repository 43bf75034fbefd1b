//! Reads of tokens from the device that do not stop the device: it computes the next step while the host waits for the
//! tokens.
//!
//! If the host first reads a token and then queues the next step, the GPU is idle between the two, at each token. So
//! the host queues a read, then the next step, and only then waits for the read. A backend in the memory of the host
//! computes at once when it is called; there, a read is complete as soon as it is queued.

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
    /// A read whose result the future `reading` waits for. The host does not wait until then.
    fn new(reading: impl Future<Output = Read> + Send + 'static) -> Self {
        Self(Some(Box::pin(reading)))
    }

    /// Waits for the data, `[b]`.
    ///
    /// # Errors
    /// The backend's error, if the data cannot be read from the device.
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

/// Queues a read of the current values of `ids [b]`, after the work that this thread has queued before. The read does
/// not wait for work that the thread queues later.
pub fn queue_read<B: QueueRead>(ids: Tensor<B, 1, Int>) -> QueuedRead {
    B::queue_read(ids)
}
