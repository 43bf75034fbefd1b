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
