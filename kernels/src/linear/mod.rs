//! `y = x W^T + bias`, with the weight as PyTorch stores it, `[d_out, d_in]`.
//!
//! An op of its own because Burn's matmul on a batched input keeps a weight gradient for each
//! sequence and sums them afterwards; here leading dimensions are flattened first, and the weight's
//! gradient comes out contiguous in the layout that files and optimiser use.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod columns;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::{Shape, Tensor};

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
/// If the last dimension of `x` is not the weight's `d_in`, or the bias is not `d_out` long.
pub fn linear<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let mut shape = x.dims();
    let [d_out, d_in] = weight.dims();
    assert_eq!(
        shape[D - 1],
        d_in,
        "linear: x ends in {}, the weight takes {d_in}",
        shape[D - 1]
    );
    if let Some(bias) = &bias {
        assert_eq!(
            bias.dims(),
            [d_out],
            "linear: the bias must have {d_out} elements"
        );
    }
    let tokens = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_out;
    timed(Kind::Products, || {
        B::linear_forward(x.reshape([tokens, d_in]), weight, bias)
    })
    .reshape(Shape::from(shape))
}
