//! The gated activation of Llama's and Qwen's MLP (arXiv 2002.05202, equation 6, without its products).

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};

use crate::profile::{Kind, timed};

/// The op, as backends compute it, on `[t, d]`.
pub trait SwiGlu: Backend {
    /// See [`swiglu`].
    fn swiglu_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        reference::forward(gate, up)
    }

    /// Gradients of [`SwiGlu::swiglu_forward`] to `gate` and `up`, from `dy [t, d]`.
    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        reference::backward(gate, up, dy)
    }
}

by_default!(SwiGlu for ndarray);

/// `silu(gate) * up` with `silu(v) = v / (1 + e^-v)`, element by element, of `gate` and `up` `[.., d]`, in
/// their dtype; computed in f32 for half precision. Differentiable in both.
///
/// # Panics
/// If shapes or dtypes differ.
pub fn swiglu<B: SwiGlu, const D: usize>(gate: Tensor<B, D>, up: Tensor<B, D>) -> Tensor<B, D> {
    let shape = gate.dims();
    assert_eq!(up.dims(), shape, "swiglu: both must have the same shape");
    assert_eq!(up.dtype(), gate.dtype(), "swiglu: one dtype for both");
    let d = shape[D - 1];
    let tokens = shape[..D - 1].iter().product::<usize>();
    let [gate, up] = [gate, up].map(|x| x.reshape([tokens, d]));
    timed(Kind::Elementwise, || B::swiglu_forward(gate, up)).reshape(Shape::from(shape))
}
