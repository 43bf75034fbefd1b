//! On slices, element by element.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::reference::{CUBIC, SCALE};
use crate::flex::math::{tanh, vectorised};
use crate::flex::{Values, rows_per_task, tensor};

const SCALE_F32: f32 = SCALE as f32;
const CUBIC_F32: f32 = CUBIC as f32;

pub(crate) fn forward(x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
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

pub(crate) fn backward(x: Tensor<Flex, 2>, dy: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
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
