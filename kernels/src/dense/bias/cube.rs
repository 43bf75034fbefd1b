//! On the CubeCL backends: the sums over the rows by the kernels of [`column_sums`].

use burn::tensor::{DType, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::{Bias, reference};
use crate::cube::column_sums::column_sums;
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> Bias for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn bias_gradient(dy: Tensor<Self, 2>, dtype: DType) -> Tensor<Self, 1> {
        let [t, d] = dy.dims();
        if computes_in_f32(dy.dtype()) && computes_in_f32(dtype) && t > 0 && d > 0 {
            tensor(column_sums(inner(dy), dtype))
        } else {
            reference::gradient(dy, dtype)
        }
    }
}
