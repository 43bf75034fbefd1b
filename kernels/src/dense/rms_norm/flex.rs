//! On slices, row by row.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Gradients, RmsNorm, reference};
use crate::flex::math::{sum, sum_pairs, vectorised};
use crate::flex::products::add_up;
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl RmsNorm for Flex {
    fn rms_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if is_f32(&x) && is_f32(&gamma) {
            forward(x, gamma, epsilon as f32)
        } else {
            reference::forward(x, gamma, epsilon)
        }
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 2],
    ) -> Gradients<Self> {
        if is_f32(&x) && is_f32(&gamma) && is_f32(&dy) {
            backward(x, gamma, dy, epsilon as f32, wanted)
        } else {
            reference::backward(x, gamma, dy, epsilon, wanted)
        }
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)` of a row.
#[inline(always)]
fn inverse(row: &[f32], epsilon: f32) -> f32 {
    let mean = sum(row, |x| x * x) / row.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

fn forward(x: Tensor<Flex, 2>, gamma: Tensor<Flex, 1>, epsilon: f32) -> Tensor<Flex, 2> {
    let [t, d] = x.dims();
    let (x, gamma) = (Values::of(x), Values::of(gamma));
    let gamma = &gamma[..d];
    let mut y = vec![0.0; t * d];
    let task = rows_per_task(d) * d;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let inverse = inverse(x, epsilon);
                        for i in 0..d {
                            y[i] = x[i] * inverse * gamma[i];
                        }
                    }
                },
            )
        });
    tensor(y, [t, d])
}

/// See [`reference::backward`] for the equations.
fn backward(
    x: Tensor<Flex, 2>,
    gamma: Tensor<Flex, 1>,
    dy: Tensor<Flex, 2>,
    epsilon: f32,
    wanted: [bool; 2],
) -> Gradients<Flex> {
    let [t, d] = x.dims();
    let (x, gamma, dy) = (Values::of(x), Values::of(gamma), Values::of(dy));
    let gamma = &gamma[..d];
    let mut dx = vec![0.0; t * d];
    let task = rows_per_task(d) * d;
    let dgamma: Vec<Vec<f32>> = (dx.par_chunks_mut(task))
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .map(|(dx, (x, dy))| {
            let mut dgamma = vec![0.0; d];
            vectorised(
                #[inline(always)]
                || {
                    let dgamma = &mut dgamma[..d];
                    for r in 0..x.len() / d {
                        let rows = r * d..(r + 1) * d;
                        let (dx, x, dy) = (&mut dx[rows.clone()], &x[rows.clone()], &dy[rows]);
                        let inverse = inverse(x, epsilon);
                        for (dx, (dy, gamma)) in dx.iter_mut().zip(dy.iter().zip(gamma)) {
                            *dx = dy * gamma;
                        }
                        let along = sum_pairs(dx, x, |g, x| g * x) * inverse / d as f32;
                        for i in 0..d {
                            let normalised = x[i] * inverse;
                            dx[i] = (dx[i] - normalised * along) * inverse;
                            dgamma[i] += dy[i] * normalised;
                        }
                    }
                },
            );
            dgamma
        })
        .collect();
    (
        wanted[0].then(|| tensor(dx, [t, d])),
        wanted[1].then(|| tensor(add_up(dgamma, d), [d])),
    )
}
