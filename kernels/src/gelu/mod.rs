//! `gelu_new`, the tanh approximation that Phi uses.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::{Shape, Tensor};

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, element by element, `[.., d]`.
pub fn gelu_new<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let shape = x.dims();
    let d = shape[D - 1];
    let tokens = shape[..D - 1].iter().product::<usize>();
    timed(Kind::Elementwise, || {
        B::gelu_new_forward(x.reshape([tokens, d]))
    })
    .reshape(Shape::from(shape))
}
