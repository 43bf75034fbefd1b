//! Adds a bias to every row, in f32 whatever the dtype of the rows. It is for values that need the full precision of
//! f32.
//!
//! Burn's addition gives the same result, but its backward pass is slow: it sums over one axis after the other, with
//! one cube for a few columns.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::autodiff::{input, primitive, record, value};
use crate::dtype::narrow;
use crate::profile::{Kind, timed};

/// The op, as backends compute it.
pub trait Bias: Backend {
    /// See [`add_bias`].
    fn add_bias(x: Tensor<Self, 3>, bias: Tensor<Self, 1>) -> Tensor<Self, 3> {
        reference::forward(x, bias)
    }

    /// The gradient to the bias, of `dtype`, from `dy [t, d]`: sums over the rows.
    fn bias_gradient(dy: Tensor<Self, 2>, dtype: DType) -> Tensor<Self, 1> {
        reference::gradient(dy, dtype)
    }
}

by_default!(Bias for ndarray, flex);

impl<B: Bias, C: CheckpointStrategy> Bias for Autodiff<B, C> {
    fn add_bias(x: Tensor<Self, 3>, bias: Tensor<Self, 1>) -> Tensor<Self, 3> {
        let saved = (x.dtype(), bias.dtype());
        let y = B::add_bias(value(&x), value(&bias));
        let inputs = [input(&x), input(&bias)];
        record(inputs, y, saved, |(x, bias), dy, wanted| {
            timed(Kind::Elementwise, || {
                let [b, l, d] = dy.dims();
                let rows = || dy.clone().reshape([b * l, d]);
                let dbias = wanted[1].then(|| primitive(B::bias_gradient(rows(), bias)));
                [Some(primitive(narrow(dy, x))), dbias]
            })
        })
    }
}

/// `x [b, l, d]` plus `bias [d]`, in f32, or wider where one of them is. Differentiable in both; sums over rows are in
/// that dtype too.
///
/// # Panics
/// If `bias` is not as long as the last dimension.
pub fn add_bias<B: Bias>(x: Tensor<B, 3>, bias: Tensor<B, 1>) -> Tensor<B, 3> {
    let [_, _, d] = x.dims();
    assert_eq!(
        bias.dims(),
        [d],
        "add_bias: the bias must have {d} elements"
    );
    timed(Kind::Elementwise, || B::add_bias(x, bias))
}
