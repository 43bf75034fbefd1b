//! `y = x W^T + bias`, with the weight as PyTorch stores it, `[d_out, d_in]`.
//!
//! Burn has a linear layer too. But on a batched input, Burn's matmul keeps one weight gradient for each sequence and
//! sums these afterwards. Here the leading dimensions are flattened first, and the weight's gradient is contiguous, in
//! the layout that files and the optimiser use.

mod autodiff;
#[cfg(any(feature = "cuda", test))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
mod column_major;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub mod tiled;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, Tensor};

use super::gelu::GeluNew;
use crate::profile::{Kind, timed};

/// Gradients to `x`, `weight` and `bias`; `None` where none was wanted.
pub type Gradients<B> = (
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 1>>,
);

/// The op, as backends compute it, with leading dimensions flattened to `t`.
pub trait Linear: GeluNew {
    /// See [`linear()`]: `x [t, d_in]` to `[t, d_out]`.
    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        reference::forward(x, weight, bias)
    }

    /// See [`linear_gelu`].
    fn linear_gelu(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        Self::gelu_new_forward(Self::linear_forward(x, weight, bias))
    }

    /// See [`linear_onto`].
    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        residual + Self::linear_forward(x, weight, bias)
    }

    /// Gradients of [`Linear::linear_forward`] to `x`, `weight` and `bias`, those that are wanted, from
    /// `dy [t, d_out]`.
    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> Gradients<Self> {
        reference::backward(x, weight, dy, wanted)
    }
}

by_default!(Linear for ndarray);

/// `x [.., d_in]` times `weight [d_out, d_in]` transposed, plus `bias [d_out]`: `[.., d_out]`.
///
/// # Panics
/// If the last dimension of `x` is not the weight's `d_in`, the bias is not `d_out` long, or they are not
/// all of one dtype.
pub fn linear<B: Linear, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let (shape, [tokens, d_in]) = shapes("linear", &x, &weight, &bias);
    let x = x.reshape([tokens, d_in]);
    let y = timed(Kind::Products, || B::linear_forward(x, weight, bias));
    y.reshape(Shape::from(shape))
}

/// [`gelu_new`](crate::gelu_new()) of what [`linear()`] gives, in one pass where the backend has one.
///
/// # Panics
/// As [`linear()`].
pub fn linear_gelu<B: Linear, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let (shape, [tokens, d_in]) = shapes("linear_gelu", &x, &weight, &bias);
    let x = x.reshape([tokens, d_in]);
    let y = timed(Kind::Products, || B::linear_gelu(x, weight, bias));
    y.reshape(Shape::from(shape))
}

/// `residual [.., d_out]` plus what [`linear()`] gives, in one pass where the backend has one.
///
/// # Panics
/// As [`linear()`], and if the residual has another shape or dtype.
pub fn linear_onto<B: Linear, const D: usize>(
    residual: Tensor<B, D>,
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let (shape, [tokens, d_in]) = shapes("linear_onto", &x, &weight, &bias);
    assert_eq!(
        residual.dims(),
        shape,
        "linear_onto: the residual must have the output's shape"
    );
    one_dtype("linear_onto", &x, residual.dtype());
    let residual = residual.reshape([tokens, shape[D - 1]]);
    let x = x.reshape([tokens, d_in]);
    let y = timed(Kind::Products, || B::linear_onto(residual, x, weight, bias));
    y.reshape(Shape::from(shape))
}

/// The output's shape, the tokens and `d_in`.
fn shapes<B: Backend, const D: usize>(
    op: &str,
    x: &Tensor<B, D>,
    weight: &Tensor<B, 2>,
    bias: &Option<Tensor<B, 1>>,
) -> ([usize; D], [usize; 2]) {
    let mut shape = x.dims();
    let [d_out, d_in] = weight.dims();
    assert_eq!(
        shape[D - 1],
        d_in,
        "{op}: x ends in {}, the weight takes {d_in}",
        shape[D - 1]
    );
    one_dtype(op, x, weight.dtype());
    if let Some(bias) = bias {
        assert_eq!(
            bias.dims(),
            [d_out],
            "{op}: the bias must have {d_out} elements"
        );
        one_dtype(op, x, bias.dtype());
    }
    let tokens = shape[..D - 1].iter().product();
    shape[D - 1] = d_out;
    (shape, [tokens, d_in])
}

/// Asserts that two tensors have the same dtype. Burn's product would read the memory of one dtype as the other.
fn one_dtype<B: Backend, const D: usize>(op: &str, x: &Tensor<B, D>, other: DType) {
    assert_eq!(x.dtype(), other, "{op}: one dtype for all");
}
