//! `y = x W^T + bias`, with the weight as PyTorch stores it, `[d_out, d_in]`.
//!
//! An op of its own because Burn's matmul on a batched input keeps a weight gradient for each
//! sequence and sums them afterwards; here leading dimensions are flattened first, and the weight's
//! gradient comes out contiguous in the layout that files and optimiser use.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod columns;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "flex")]
pub(crate) mod flex;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(any(feature = "cuda", test))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
mod product;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, Tensor};

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// Gradients to `x`, `weight` and `bias`; `None` where none was wanted.
pub type Gradients<B> = (
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 1>>,
);

/// `x [.., d_in]` times `weight [d_out, d_in]` transposed, plus `bias [d_out]`: `[.., d_out]`.
///
/// # Panics
/// If the last dimension of `x` is not the weight's `d_in`, the bias is not `d_out` long, or they are not
/// all of one dtype.
pub fn linear<B: KernelBackend, const D: usize>(
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
pub fn linear_gelu<B: KernelBackend, const D: usize>(
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
pub fn linear_onto<B: KernelBackend, const D: usize>(
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
fn shapes<B: KernelBackend, const D: usize>(
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

/// Burn's product would read the one's memory as if it were the other's.
fn one_dtype<B: Backend, const D: usize>(op: &str, x: &Tensor<B, D>, other: DType) {
    assert_eq!(x.dtype(), other, "{op}: one dtype for all");
}
