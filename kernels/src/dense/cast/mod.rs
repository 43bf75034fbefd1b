//! Many tensors in another dtype: a network's f32 parameters as the half precision that a pass computes in.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::profile::{Kind, timed};

/// The op, as backends compute it. No gradient passes through it.
pub trait CastAll: Backend {
    /// See [`cast_all`].
    fn cast_all(xs: Vec<Tensor<Self, 1>>, dtype: DType) -> Vec<Tensor<Self, 1>> {
        xs.into_iter().map(|x| x.cast(dtype)).collect()
    }
}

by_default!(CastAll for ndarray, flex, autodiff);

/// Each of `xs` in `dtype`, in their order: on a GPU in few launches.
pub fn cast_all<B: CastAll>(xs: Vec<Tensor<B, 1>>, dtype: DType) -> Vec<Tensor<B, 1>> {
    timed(Kind::Elementwise, || B::cast_all(xs, dtype))
}
