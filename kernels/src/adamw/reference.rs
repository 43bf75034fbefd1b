//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::AdamWStep;
use crate::ssd::reference::widen;

/// See [`adamw_step`](super::adamw_step).
pub fn step<B: Backend, const D: usize>(
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    [m, v]: [Tensor<B, D>; 2],
    step: AdamWStep,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let gradient = gradient * step.gradient_scale;
    let m = m * step.beta1 + gradient.clone() * (1.0 - step.beta1);
    let v = v * step.beta2 + gradient.clone() * gradient * (1.0 - step.beta2);
    let [correction1, correction2] = step.bias_corrections();
    let update = m.clone() / ((v.clone() / correction2).sqrt() + step.epsilon);
    let decayed = parameter * (1.0 - step.lr * step.weight_decay);
    (decayed - update * (step.lr / correction1), [m, v])
}

/// See [`squared_norm`](super::squared_norm).
pub fn squared_norm<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    let x = widen(x);
    (x.clone() * x).sum()
}
