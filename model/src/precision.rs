//! Where half precision must not be used: sums over many terms, and states that live long.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// f32 for half precision, and the dtype itself otherwise.
pub(crate) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        wide => wide,
    }
}

/// `x` in `dtype`, without a copy where it is that already.
pub(crate) fn to_dtype<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// Half precision to f32, in which sums are taken; f32 and f64 as they are.
pub fn widen<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = wide(x.dtype());
    to_dtype(x, dtype)
}

/// Until the op is there.
pub(crate) fn rms_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    let dtype = x.dtype();
    let x = widen(x);
    let rms = x
        .clone()
        .powi_scalar(2)
        .mean_dim(D - 1)
        .add_scalar(epsilon)
        .sqrt();
    to_dtype((x / rms) * widen(gamma).unsqueeze(), dtype)
}

/// Until the op is there.
pub(crate) fn swiglu<B: Backend, const D: usize>(
    gate: Tensor<B, D>,
    up: Tensor<B, D>,
) -> Tensor<B, D> {
    burn::tensor::activation::silu(gate) * up
}
