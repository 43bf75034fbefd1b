//! A tensor times a number that is on the device, which may be wider than the tensor: one pass.

mod kernels;

use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::scaled;
use super::{Scale, product};
use crate::cube::{computes_in_f32, inner, tensor};

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
