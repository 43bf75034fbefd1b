//! As CubeCL kernels: a cube a row, whose units keep the difference of the rows in registers between its
//! length and the gradient. One cube then takes the mean.

mod kernels;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{KEPT, UNITS, distance};
use super::{HiddenStates, reference};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> HiddenStates for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        if fits(&a, &b) {
            tensor(distance(inner(a), inner(b), false).0)
        } else {
            reference::forward(a, b)
        }
    }

    fn rows_distance_with_gradient(
        a: Tensor<Self, 2>,
        b: Tensor<Self, 2>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !fits(&a, &b) {
            return reference::with_gradient(a, b);
        }
        let (loss, gradient) = distance(inner(a), inner(b), true);
        (tensor(loss), tensor(gradient.expect("it is wanted")))
    }
}

/// Whether the kernel takes rows such as these.
fn fits<B: Backend>(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> bool {
    let [n, d] = a.dims();
    computes_in_f32(a.dtype()) && computes_in_f32(b.dtype()) && n * d > 0 && d <= UNITS * KEPT
}
