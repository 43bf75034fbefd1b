//! The gradient as a CubeCL kernel with a cube for each token. The cube of the first token with an id adds up the rows
//! of all tokens with this id; the other cubes do nothing. Its units first find these tokens together, and then each
//! unit adds a few columns.

mod kernels;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::write_row_sums;
use super::{Embedding, reference};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> Embedding for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn embedding_gradient(
        ids: Tensor<Self, 2, Int>,
        dy: Tensor<Self, 3>,
        v: usize,
    ) -> Tensor<Self, 2> {
        let [b, l, d] = dy.dims();
        let rows = inner(dy.clone().reshape([b * l, d]));
        let places = ids.clone().into_primitive();
        if !fits(&places, &rows) {
            return reference::gradient(ids, dy, v);
        }
        let zeros = Tensor::<Self, 2>::zeros([v, d], (&dy.device(), dy.dtype()));
        tensor(write_row_sums(places, rows, inner(zeros)))
    }
}

/// Whether the kernel supports these inputs.
fn fits<R: CubeRuntime>(ids: &CubeTensor<R>, dy: &CubeTensor<R>) -> bool {
    dy.meta.shape().num_elements() > 0 && ids.dtype == DType::I32 && computes_in_f32(dy.dtype)
}
