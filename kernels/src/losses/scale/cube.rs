//! A tensor times a number that is on the device, which may be wider than the tensor: one pass.

use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::{Scale, product};
use crate::cube::each_row::cubes;
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor, vector_size};

const UNITS: usize = 256;

impl<R, F, I, T> Scale for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        let shape = x.dims();
        let fits = computes_in_f32(x.dtype()) && computes_in_f32(by.dtype());
        if !fits || shape.contains(&0) {
            return product(x, by);
        }
        let x = into_contiguous(inner(x.reshape([shape.iter().product::<usize>()])));
        tensor::<R, Self, 1>(scaled(x, inner(by))).reshape(shape)
    }
}

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
fn scaled<R: CubeRuntime>(x: CubeTensor<R>, by: CubeTensor<R>) -> CubeTensor<R> {
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
