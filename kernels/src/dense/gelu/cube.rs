//! As CubeCL kernels: one pass over memory each way, in f32, a vector a unit.
//!
//! With `u` the argument of the hyperbolic tangent and `s = 1 / (1 + e^-2u)`: `(1 + tanh u) / 2 = s` and
//! `1 - tanh^2 u = 4 s (1 - s)`. Where the exponential is infinite, `s` is 0.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::reference::{CUBIC, SCALE};
use super::{GeluNew, reference};
use crate::cube::{address_type, computes_in_f32, empty, flat_vector_size, inner, tensor};

const UNITS: u32 = 256;

pub(crate) const MINUS_TWICE_SCALE: f32 = -2.0 * SCALE as f32;
const TWICE_SCALE: f32 = 2.0 * SCALE as f32;
pub(crate) const CUBIC_F32: f32 = CUBIC as f32;
const THRICE_CUBIC: f32 = 3.0 * CUBIC as f32;
/// Beyond any slope that is not multiplied by 0, and far enough below infinity.
const STEEPEST: f32 = 1e30;

impl<R, F, I, T> GeluNew for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if fits(&x) {
            tensor(forward(inner(x)))
        } else {
            reference::forward(x)
        }
    }

    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        assert_eq!(x.dtype(), dy.dtype(), "gelu_new: one dtype for both");
        if fits(&x) {
            tensor(backward(inner(x), inner(dy)))
        } else {
            reference::backward(x, dy)
        }
    }
}

/// Whether the kernels read what is there.
fn fits<B: Backend>(x: &Tensor<B, 2>) -> bool {
    computes_in_f32(x.dtype()) && x.shape().num_elements() > 0
}

/// `(1 + tanh u) / 2`.
#[cube]
fn gate<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let cubic = x * x * x * Vector::new(CUBIC_F32);
    let exponent = (x + cubic) * Vector::new(MINUS_TWICE_SCALE);
    one / (one + Vector::exp(exponent))
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
        y[at] = Vector::cast_from(value * gate(value));
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
        // Not infinite, as it may be multiplied by 0.
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

/// See [`gelu_new`](super::gelu_new): `x [t, d]`, not empty.
fn forward<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
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
fn backward<R: CubeRuntime>(x: CubeTensor<R>, dy: CubeTensor<R>) -> CubeTensor<R> {
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
