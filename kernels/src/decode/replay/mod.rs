//! A step of decoding that always makes the same launches, as one launch.
//!
//! A small network's step is some hundred and fifty short kernels, and giving them to a GPU one by one takes the host
//! longer than they take the GPU. Where each step makes the same launches on the same memory, they can be recorded
//! once, and repeated as one: by the device as a CUDA graph, or on wgpu as a list that is put together once.
//!
//! Where there is no such device, and wherever something stands in the way, a step is computed as always.

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
    /// The step for other `ids [b]`: the logits `[b, v]`, in the memory of those before. It is the `since`th after the one
    /// that was recorded, by which caches of attention know how many tokens they hold. `None` where it cannot be
    /// repeated now, and must be computed: somebody still holds the logits before, or another thread recorded it.
    ///
    /// # Panics
    /// If there are not as many ids as were recorded.
    pub fn replay(&self, ids: Tensor<B, 1, Int>, since: u32) -> Option<Tensor<B, 2>> {
        self.0.replay(ids, since)
    }
}

/// Computes `step(ids)`, and records it where the device can: then CUDA calls `step` twice, the second time without
/// being computed.
///
/// What `step` changes must be tensors that nothing else holds, which its ops write in place; between two replays they
/// may be written in place, but not replaced. What it does beside launches, such as counting, is not repeated. A cache of
/// attention must have room for the tokens of all steps that are repeated, and the angles of their positions.
///
/// While a step is recorded, no other thread may use this thread's memory on the device, such as parameters that it has
/// loaded, for the first time: that work could become a part of the recording, and would not be computed.
pub fn record<B: Replay>(ids: Tensor<B, 1, Int>, step: &mut Step<'_, B>) -> Taken<B> {
    B::record(ids, step)
}
