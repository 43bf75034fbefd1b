//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::AdamWStep;
use crate::dtype::{narrow, widen};

/// See [`adamw_step`](super::adamw_step).
pub fn step<B: Backend, const D: usize>(
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    [m, v]: [Tensor<B, D>; 2],
    scale: Tensor<B, 1>,
    step: AdamWStep,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let (shape, dtype) = (parameter.shape(), parameter.dtype());
    let broken = scale.clone().is_finite().bool_not();
    let broken = broken.reshape([1; D]).expand(shape);
    let scale = narrow(scale, dtype).reshape([1; D]);
    let gradient = narrow(gradient, dtype) * scale;
    let new_m = m.clone() * step.beta1 + gradient.clone() * (1.0 - step.beta1);
    let new_v = v.clone() * step.beta2 + gradient.clone() * gradient * (1.0 - step.beta2);
    let [correction1, correction2] = step.bias_corrections();
    let update = new_m.clone() / ((new_v.clone() / correction2).sqrt() + step.epsilon);
    let decayed = parameter.clone() * (1.0 - step.lr * step.weight_decay);
    let new = decayed - update * (step.lr / correction1);
    (
        new.mask_where(broken.clone(), parameter),
        [
            new_m.mask_where(broken.clone(), m),
            new_v.mask_where(broken, v),
        ],
    )
}

/// See [`squared_norm`](super::squared_norm).
pub fn squared_norm<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    let x = widen(x);
    (x.clone() * x).sum()
}

/// See [`squared_norms`](super::squared_norms).
pub fn squared_norms<B: Backend>(xs: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    let norms = xs.into_iter().map(squared_norm);
    norms
        .reduce(|sum, norm| sum + norm)
        .expect("at least one tensor")
}
