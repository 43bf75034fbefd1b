//! The kernels and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::cubes;
use crate::cube::{address_type, empty, vector_size};

const UNITS: usize = 256;

#[cube(launch_unchecked, address_type = "dynamic")]
fn scaled_kernel<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    by: &Array<W>,
    y: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _by_dtype: StorageType,
) {
    if ABSOLUTE_POS < y.shape(0) / N::value() {
        let by = Vector::<f32, N>::new(f32::cast_from(by[0]));
        y[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]) * by);
    }
}

/// The contiguous `x [n]` times the one element of `by`.
pub(super) fn scaled<R: CubeRuntime>(x: CubeTensor<R>, by: CubeTensor<R>) -> CubeTensor<R> {
    let [n]: [usize; 1] = x.meta.shape().dims();
    let y = empty(&x, [n], x.dtype);
    let lanes = vector_size(&[&x, &y]);
    let [across, down] = cubes((n / lanes).div_ceil(UNITS));
    let (width, dtype, by_dtype) = (address_type(&[&x]), x.dtype, by.dtype);
    // SAFETY: a unit reads and writes its own numbers, below the length of both.
    unsafe {
        scaled_kernel::launch_unchecked::<R>(
            &y.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            lanes,
            x.into_tensor_arg(),
            by.into_array_arg(),
            y.clone().into_tensor_arg(),
            dtype.into(),
            by_dtype.into(),
        );
    }
    y
}
