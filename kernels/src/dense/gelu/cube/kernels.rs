//! The kernels and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::super::reference::{CUBIC, SCALE};
use crate::cube::{address_type, empty, flat_vector_size};

const UNITS: u32 = 256;

pub(crate) const MINUS_TWICE_SCALE: f32 = -2.0 * SCALE as f32;
const TWICE_SCALE: f32 = 2.0 * SCALE as f32;
pub(crate) const CUBIC_F32: f32 = CUBIC as f32;
const THRICE_CUBIC: f32 = 3.0 * CUBIC as f32;
/// An upper bound of the slope: larger than any slope whose factor is not 0, and far below infinity.
const STEEPEST: f32 = 1e30;

/// `(1 + tanh u) / 2`.
#[cube]
fn gate<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let cubic = x * x * x * Vector::new(CUBIC_F32);
    let exponent = (x + cubic) * Vector::new(MINUS_TWICE_SCALE);
    one / (one + Vector::exp(exponent))
}

/// The GELU of every element.
#[cube]
pub(crate) fn gelu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * gate(x)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let value = Vector::<f32, N>::cast_from(x[at]);
        y[at] = Vector::cast_from(gelu(value));
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let one = Vector::<f32, N>::new(1.0f32);
        let value = Vector::<f32, N>::cast_from(x[at]);
        let s = gate(value);
        let slope = value * value * Vector::new(THRICE_CUBIC) + one;
        // The slope must be finite, because it may be multiplied by 0.
        let slope = min(slope * Vector::new(TWICE_SCALE), Vector::new(STEEPEST));
        let along = s * (one - s) * slope * value;
        dx[at] = Vector::cast_from(Vector::<f32, N>::cast_from(dy[at]) * (s + along));
    }
}

/// Like `x`, without gaps, to be written.
fn output<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let shape: [usize; 2] = x.meta.shape().dims();
    empty(x, shape, x.dtype)
}

/// See [`gelu_new`](super::super::gelu_new): `x [t, d]`, not empty.
pub(super) fn forward<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let y = output(&x);
    let n = flat_vector_size(&[&x]);
    let vectors = x.meta.num_elements() / n;
    let (client, cube, dtype) = (x.client.clone(), CubeDim::new_1d(UNITS), x.dtype);
    // SAFETY: units beyond the vectors of both do nothing.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, vectors, cube),
            cube,
            address_type(&[&x]),
            n,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            vectors as u32,
            dtype.into(),
        );
    }
    y
}

/// The gradient to `x`, from `dy` of its shape and dtype.
pub(super) fn backward<R: CubeRuntime>(x: CubeTensor<R>, dy: CubeTensor<R>) -> CubeTensor<R> {
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let dx = output(&x);
    let n = flat_vector_size(&[&x]);
    let vectors = x.meta.num_elements() / n;
    let (client, cube, dtype) = (x.client.clone(), CubeDim::new_1d(UNITS), x.dtype);
    // SAFETY: units beyond the vectors of the three do nothing.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, vectors, cube),
            cube,
            address_type(&[&x]),
            n,
            x.into_array_arg(),
            dy.into_array_arg(),
            dx.clone().into_array_arg(),
            vectors as u32,
            dtype.into(),
        );
    }
    dx
}
