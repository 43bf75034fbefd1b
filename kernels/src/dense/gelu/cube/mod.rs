//! As CubeCL kernels: one pass over memory each way, in f32, a vector a unit.
//!
//! With `u` the argument of the hyperbolic tangent and `s = 1 / (1 + e^-2u)`: `(1 + tanh u) / 2 = s` and
//! `1 - tanh^2 u = 4 s (1 - s)`. Where the exponential is infinite, `s` is 0.

mod kernels;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{backward, forward};
use super::{GeluNew, reference};
use crate::cube::{computes_in_f32, inner, tensor};

pub(crate) use self::kernels::{CUBIC_F32, MINUS_TWICE_SCALE, gelu};

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

/// Whether the kernels support these inputs.
fn fits<B: Backend>(x: &Tensor<B, 2>) -> bool {
    computes_in_f32(x.dtype()) && x.shape().num_elements() > 0
}
