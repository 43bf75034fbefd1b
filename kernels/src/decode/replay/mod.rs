//! Records a decoding step that always makes the same launches, and repeats it as one launch.
//!
//! A step of a small network is about 150 short kernels. To launch them one by one takes the host longer than the GPU
//! needs to run them. If each step makes the same launches on the same memory, the launches can be recorded once and
//! then repeated as one: as a CUDA graph, or on wgpu as a list of dispatches that is built once.
//!
//! If the device cannot record, or the step cannot be recorded, the step is computed in the normal way.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

use std::fmt;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

/// A step: from the ids of its tokens, `[b]`, to its logits, `[b, v]`.
pub type Step<'a, B> = dyn FnMut(Tensor<B, 1, Int>) -> Tensor<B, 2> + 'a;

/// The logits `[b, v]` of a step, and the step, where it was recorded.
pub type Taken<B> = (Tensor<B, 2>, Option<Recording<B>>);

/// The op, as backends compute it.
pub trait Replay: Backend {
    /// See [`record`].
    fn record(ids: Tensor<Self, 1, Int>, step: &mut Step<'_, Self>) -> Taken<Self> {
        (step(ids), None)
    }
}

by_default!(Replay for ndarray, flex, autodiff);

/// A step that was recorded, with the memory of all that it reads and writes.
pub struct Recording<B: Backend>(Box<dyn Repeat<B>>);

/// A backend's form of a [`Recording`].
trait Repeat<B: Backend>: Send + Sync {
    /// See [`Recording::replay`].
    fn replay(&self, ids: Tensor<B, 1, Int>, since: u32) -> Option<Tensor<B, 2>>;
}

impl<B: Backend> fmt::Debug for Recording<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

impl<B: Backend> Recording<B> {
    /// Repeats the step for other `ids [b]`, and returns the logits `[b, v]`, in the memory of the previous logits.
    /// This is the `since`th step after the recorded one; from this number, caches of attention get their number of
    /// tokens. Returns `None` if the step cannot be repeated now and must be computed: something still holds the
    /// previous logits, or another thread has recorded the step.
    ///
    /// # Panics
    /// If there are not as many ids as were recorded.
    pub fn replay(&self, ids: Tensor<B, 1, Int>, since: u32) -> Option<Tensor<B, 2>> {
        self.0.replay(ids, since)
    }
}

/// Computes `step(ids)`, and records it if the device can. To record, the CUDA backend calls `step` twice; the second
/// call computes nothing.
///
/// The tensors that `step` changes must be held by nothing else, and its ops must write them in place. Between two
/// replays they may be written in place, but not replaced. Side effects other than launches, such as a counter on the
/// host, are not repeated. A cache of attention must have room for the tokens of all repeated steps, and the table of
/// angles must cover their positions.
///
/// While a step is recorded, no other thread may use this thread's memory on the device, such as parameters that it has
/// loaded, for the first time: that work could become a part of the recording, and would not be computed.
pub fn record<B: Replay>(ids: Tensor<B, 1, Int>, step: &mut Step<'_, B>) -> Taken<B> {
    B::record(ids, step)
}
