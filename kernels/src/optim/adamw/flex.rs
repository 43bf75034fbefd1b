//! On slices: one pass over four arrays, in place where nothing else holds them.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{AdamW, AdamWStep, reference};
use crate::dtype::widen;
use crate::flex::math::{sum, vectorised};
use crate::flex::{Values, is_f32, tensor};

/// Elements that one task updates.
const TASK: usize = 1 << 15;

impl AdamW for Flex {
    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        if !is_f32(&parameter) {
            return reference::step(parameter, gradient, moments, scale, step);
        }
        let (gradient, scale) = (widen(gradient), widen(scale).into_scalar());
        update(parameter, gradient, moments, scale, step)
    }

    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        if is_f32(&x) {
            squared_norms(vec![x])
        } else {
            reference::squared_norm(x)
        }
    }

    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        if xs.iter().all(is_f32) {
            squared_norms(xs)
        } else {
            reference::squared_norms(xs)
        }
    }
}

fn owned<const D: usize>(x: Tensor<Flex, D>) -> FlexTensor {
    x.into_primitive().tensor().to_contiguous()
}

fn update<const D: usize>(
    parameter: Tensor<Flex, D>,
    gradient: Tensor<Flex, D>,
    [m, v]: [Tensor<Flex, D>; 2],
    scale: f32,
    step: AdamWStep,
) -> (Tensor<Flex, D>, [Tensor<Flex, D>; 2]) {
    if !scale.is_finite() {
        return (parameter, [m, v]);
    }
    let gradient = Values::of(gradient);
    let (mut parameter, mut m, mut v) = (owned(parameter), owned(m), owned(v));
    let [correction1, correction2] = step.bias_corrections();
    let keep = (1.0 - step.lr * step.weight_decay) as f32;
    let rate = (step.lr / correction1) as f32;
    let root = (1.0 / correction2) as f32;
    let [beta1, beta2] = [step.beta1 as f32, step.beta2 as f32];
    let [new1, new2] = [(1.0 - step.beta1) as f32, (1.0 - step.beta2) as f32];
    let epsilon = step.epsilon as f32;

    let moments = m.storage_mut::<f32>().par_chunks_mut(TASK);
    let moments = moments.zip(v.storage_mut::<f32>().par_chunks_mut(TASK));
    let parameters = parameter.storage_mut::<f32>().par_chunks_mut(TASK);
    (parameters.zip(moments).zip(gradient.par_chunks(TASK))).for_each(|((w, (m, v)), g)| {
        vectorised(
            #[inline(always)]
            || {
                for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m = beta1 * *m + new1 * g;
                    *v = beta2 * *v + new2 * g * g;
                    *w = keep * *w - rate * *m / ((*v * root).sqrt() + epsilon);
                }
            },
        )
    });
    let wrap = |x| Tensor::from_primitive(TensorPrimitive::Float(x));
    (wrap(parameter), [wrap(m), wrap(v)])
}

/// The sum of the squares of `xs`, blocks of each in f32 and these in f64.
fn squared_norms<const D: usize>(xs: Vec<Tensor<Flex, D>>) -> Tensor<Flex, 1> {
    let norms = xs.into_iter().map(|x| {
        let x = Values::of(x);
        let blocks: Vec<f64> = x
            .par_chunks(TASK)
            .map(|x| {
                vectorised(
                    #[inline(always)]
                    || f64::from(sum(x, |x| x * x)),
                )
            })
            .collect();
        blocks.iter().sum::<f64>()
    });
    tensor(vec![norms.sum::<f64>() as f32], [1])
}
