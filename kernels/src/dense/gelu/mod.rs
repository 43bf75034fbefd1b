//! `gelu_new`, the tanh approximation that Phi uses.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};

use crate::profile::{Kind, timed};

/// The op, as backends compute it, on `[t, d]`.
pub trait GeluNew: Backend {
    /// See [`gelu_new`].
    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        reference::forward(x)
    }

    /// Gradient of [`GeluNew::gelu_new_forward`] to `x`; `dy` has the dtype of `x`.
    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        reference::backward(x, dy)
    }
}

by_default!(GeluNew for ndarray);

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, element by element, `[.., d]`.
pub fn gelu_new<B: GeluNew, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let shape = x.dims();
    let d = shape[D - 1];
    let tokens = shape[..D - 1].iter().product::<usize>();
    timed(Kind::Elementwise, || {
        B::gelu_new_forward(x.reshape([tokens, d]))
    })
    .reshape(Shape::from(shape))
}
