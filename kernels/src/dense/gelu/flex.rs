//! On slices, element by element.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::reference::{CUBIC, SCALE};
use super::{GeluNew, reference};
use crate::flex::math::{tanh, vectorised};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

const SCALE_F32: f32 = SCALE as f32;
const CUBIC_F32: f32 = CUBIC as f32;

impl GeluNew for Flex {
    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if is_f32(&x) {
            forward(x)
        } else {
            reference::forward(x)
        }
    }

    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if is_f32(&x) {
            backward(x, dy)
        } else {
            reference::backward(x, dy)
        }
    }
}

fn forward(x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let x = Values::of(x);
    let mut y = vec![0.0; x.len()];
    let task = rows_per_task(1) * 16;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        let t = tanh(SCALE_F32 * (x + CUBIC_F32 * x * x * x));
                        *y = 0.5 * x * (1.0 + t);
                    }
                },
            )
        });
    tensor(y, shape)
}

fn backward(x: Tensor<Flex, 2>, dy: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let (x, dy) = (Values::of(x), Values::of(dy));
    let mut dx = vec![0.0; x.len()];
    let task = rows_per_task(1) * 16;
    dx.par_chunks_mut(task)
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .for_each(|(dx, (x, dy))| {
            vectorised(
                #[inline(always)]
                || {
                    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                        let t = tanh(SCALE_F32 * (x + CUBIC_F32 * x * x * x));
                        let inner_slope = SCALE_F32 * (1.0 + 3.0 * CUBIC_F32 * x * x);
                        *dx = 0.5 * dy * ((1.0 + t) + x * (1.0 - t * t) * inner_slope);
                    }
                },
            )
        });
    tensor(dx, shape)
}
