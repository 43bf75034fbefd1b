//! On the CubeCL backends: from rows that may have others between them to f32 in one launch, and the sums over the rows by
//! the kernels of [`column_sums`].

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::{Bias, reference};
use crate::cube::column_sums::column_sums;
use crate::cube::each_row::cubes;
use crate::cube::rows::{View, view};
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor};

const UNITS: usize = 256;

impl<R, F, I, T> Bias for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn add_bias(x: Tensor<Self, 3>, bias: Tensor<Self, 1>) -> Tensor<Self, 3> {
        let full = x.shape().num_elements() > 0;
        if full && computes_in_f32(x.dtype()) && computes_in_f32(bias.dtype()) {
            tensor(forward(inner(x), inner(bias)))
        } else {
            reference::forward(x, bias)
        }
    }

    fn bias_gradient(dy: Tensor<Self, 2>, dtype: DType) -> Tensor<Self, 1> {
        let [t, d] = dy.dims();
        if computes_in_f32(dy.dtype()) && computes_in_f32(dtype) && t > 0 && d > 0 {
            tensor(column_sums(inner(dy), dtype))
        } else {
            reference::gradient(dy, dtype)
        }
    }
}

/// One element a unit.
#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, W: Float>(
    x_bld: &Array<F>,
    bias_d: &Array<W>,
    y_bld: &mut Array<f32>,
    elements: usize,
    x: View,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _bias_dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at >= elements {
        terminate!();
    }
    let (row, column) = (at / x.groups, at % x.groups);
    let (batch, t) = (row / x.count, row % x.count);
    let from = batch * x.batch + t * x.row + column * x.group;
    y_bld[at] = f32::cast_from(x_bld[from]) + f32::cast_from(bias_d[column]);
}

/// See [`add_bias`](super::add_bias): `x [b, l, d]` with any strides, not empty.
fn forward<R: CubeRuntime>(x: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
    let shape: [usize; 3] = x.meta.shape().dims();
    let y = empty(&x, shape, DType::F32);
    let elements: usize = shape.iter().product();
    let [across, down] = cubes(elements.div_ceil(UNITS));
    let (dtypes, of_x) = ((x.dtype, bias.dtype), view(&x));
    // SAFETY: units beyond the elements leave, and the others read an element of x and of the bias and write their own.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &y.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&x, &y]),
            x.into_array_arg(),
            into_contiguous(bias).into_array_arg(),
            y.clone().into_array_arg(),
            elements,
            of_x,
            dtypes.0.into(),
            dtypes.1.into(),
        );
    }
    y
}
