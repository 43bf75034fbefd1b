//! As CubeCL kernels: a cube a token marks the teacher's ids in a bitmap, reads the student's logits once for their
//! largest and the sum of the others' exponentials, then the logits of those ids, and once more for the gradient. A
//! second kernel puts the gradient of the ids over what the first has written there: in the first, these elements are
//! other units' to write.

mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{Operands, block, fits_shared_memory};
use super::{TopClassesInputs, TopClassesLoss, reference};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> TopClassesLoss for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn top_classes_block(
        inputs: TopClassesInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !fits(&inputs) {
            return reference::block(inputs, tokens);
        }
        let teacher = inputs.teacher;
        let f32 = |x: Tensor<Self, 2>| inner(x.cast(DType::F32));
        let operands = Operands {
            student: inner(inputs.student),
            ids: teacher.ids.into_primitive(),
            log_q: f32(teacher.log_q),
            log_rest: f32(teacher.log_rest),
            labels: inputs.labels.map(Tensor::into_primitive),
            weights: inputs.weights,
            divergence: inputs.divergence,
        };
        let (loss, gradient) = block(operands, tokens);
        (tensor(loss), tensor(gradient))
    }
}

/// Whether the kernels support these inputs, and the data of a token fit in shared memory.
fn fits<R, B>(inputs: &TopClassesInputs<B>) -> bool
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    let labels = inputs.labels.clone().map(Tensor::into_primitive);
    let ids = inputs.teacher.ids.clone().into_primitive();
    let ([_, v], [_, k]) = (inputs.student.dims(), inputs.teacher.ids.dims());
    inputs.student.shape().num_elements() > 0
        && computes_in_f32(inputs.student.dtype())
        && ids.dtype == DType::I32
        && labels.is_none_or(|labels| labels.dtype == DType::I32)
        && fits_shared_memory(&ids.client, v, k)
}
