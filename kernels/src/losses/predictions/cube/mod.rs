//! As CubeCL kernels: a cube a token reads both rows of logits once for their largest and the sums of
//! exponentials, and again, backwards and so while the end of the rows is still in a cache, for the loss and
//! the gradient. One cube then takes the mean.

mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{Operands, block};
use super::{DistillationInputs, Predictions, reference};
use crate::cube::{computes_in_f32, inner, tensor};
use crate::dtype::narrow;

impl<R, F, I, T> Predictions for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn distillation_loss_forward(inputs: DistillationInputs<Self>) -> Tensor<Self, 1> {
        if !fits(&inputs) {
            return reference::forward(inputs);
        }
        let ([t, _], dtype) = (inputs.student.dims(), inputs.student.dtype());
        narrow(tensor(block(operands(inputs), t, false).0), dtype)
    }

    fn distillation_loss_with_gradient(
        inputs: DistillationInputs<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let ([t, _], dtype) = (inputs.student.dims(), inputs.student.dtype());
        let (loss, gradient) = Self::distillation_block(inputs, t);
        (narrow(loss, dtype), gradient)
    }

    fn distillation_block(
        inputs: DistillationInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !fits(&inputs) {
            return reference::block(inputs, tokens);
        }
        let (loss, gradient) = block(operands(inputs), tokens, true);
        (tensor(loss), tensor(gradient.expect("it is wanted")))
    }
}

/// Whether the kernel supports these inputs.
fn fits<R, B>(inputs: &DistillationInputs<B>) -> bool
where
    R: CubeRuntime,
    B: Backend<IntTensorPrimitive = CubeTensor<R>>,
{
    let labels = inputs.labels.clone().map(Tensor::into_primitive);
    inputs.student.shape().num_elements() > 0
        && computes_in_f32(inputs.student.dtype())
        && computes_in_f32(inputs.teacher.dtype())
        && labels.is_none_or(|labels| labels.dtype == DType::I32)
}

fn operands<R, B>(inputs: DistillationInputs<B>) -> Operands<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    Operands {
        student: inner(inputs.student),
        teacher: inner(inputs.teacher),
        labels: inputs.labels.map(Tensor::into_primitive),
        weights: inputs.weights,
    }
}
