//! As a CubeCL kernel: a unit turns a few neighbouring pairs of a head, or copies what is not turned.

mod kernels;

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{rotate, rotate_in_place};
use super::{Rotary, reference};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> Rotary for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        let (own, angles) = (inner(x.clone()), [cos.clone(), sin.clone()].map(inner));
        if !fits(&own, angles.each_ref()) {
            return reference::forward(x, cos, sin);
        }
        tensor(rotate(own, angles, false))
    }

    fn rotary_backward(
        dy: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        let (own, angles) = (inner(dy.clone()), [cos.clone(), sin.clone()].map(inner));
        if !fits(&own, angles.each_ref()) {
            return reference::forward(dy, cos, -sin);
        }
        tensor(rotate(own, angles, true))
    }

    fn rotary_of_heads(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
        heads: usize,
    ) -> Tensor<Self, 4> {
        let (own, angles) = (inner(x), [cos.clone(), sin.clone()].map(inner));
        let in_place = own.can_mut() && own.is_nonoverlapping();
        if heads == 0 || !in_place || !fits(&own, angles.each_ref()) {
            return reference::of_heads(tensor(own), cos, sin, heads);
        }
        tensor(rotate_in_place(own, angles, heads))
    }
}

/// Whether the kernel supports these inputs: `angles` is the cosines or the sines.
fn fits<R: CubeRuntime>(x: &CubeTensor<R>, angles: [&CubeTensor<R>; 2]) -> bool {
    x.meta.shape().num_elements() > 0
        && computes_in_f32(x.dtype)
        && angles.iter().all(|angles| angles.dtype == DType::F32)
        && angles[0].meta.shape()[1] > 0
}
