//! Conversions between dtypes, as every reference makes them.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// Half precision to f32; f32 and f64 as they are.
pub(crate) fn widen<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// `x` in `dtype`: itself where it is so already.
pub(crate) fn narrow<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// Asserts that the inputs of an op are all f64, or none of them is. f32 and narrower dtypes may be mixed. A mix with
/// f64 would lose precision, and a GPU kernel would read the memory of one dtype as the other.
///
/// # Panics
/// If some of `dtypes` are f64 and others are not.
pub(crate) fn assert_one_width(op: &str, dtypes: &[DType]) {
    let doubles = dtypes.iter().filter(|dtype| **dtype == DType::F64).count();
    assert!(
        doubles == 0 || doubles == dtypes.len(),
        "{op}: inputs of f64 and of narrower dtypes {dtypes:?}; cast them to one of the two"
    );
}

/// `1 / (1 + e^-x)`. Burn's own computes in f32 whatever the tensor's dtype.
pub(crate) fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    ((-x).exp() + 1.0).recip()
}
