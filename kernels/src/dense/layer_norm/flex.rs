//! On slices, row by row.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Gradients, LayerNorm, reference};
use crate::flex::math::{sum, sum_pairs, vectorised};
use crate::flex::products::add_up;
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl LayerNorm for Flex {
    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if is_f32(&x) && is_f32(&gamma) && is_f32(&beta) {
            forward(x, gamma, beta, epsilon as f32)
        } else {
            reference::forward(x, gamma, beta, epsilon)
        }
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 3],
    ) -> Gradients<Self> {
        if is_f32(&x) && is_f32(&gamma) && is_f32(&dy) {
            backward(x, gamma, dy, epsilon as f32, wanted)
        } else {
            reference::backward(x, gamma, dy, epsilon, wanted)
        }
    }
}

/// The mean and `1 / sqrt(var + epsilon)` of a row.
#[inline(always)]
fn statistics(row: &[f32], epsilon: f32) -> (f32, f32) {
    let d = row.len() as f32;
    let mean = sum(row, |x| x) / d;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / d;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

fn forward(
    x: Tensor<Flex, 2>,
    gamma: Tensor<Flex, 1>,
    beta: Tensor<Flex, 1>,
    epsilon: f32,
) -> Tensor<Flex, 2> {
    let [t, d] = x.dims();
    let (x, gamma, beta) = (Values::of(x), Values::of(gamma), Values::of(beta));
    let (gamma, beta) = (&gamma[..d], &beta[..d]);
    let mut y = vec![0.0; t * d];
    let task = rows_per_task(d) * d;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let (mean, inverse) = statistics(x, epsilon);
                        for i in 0..d {
                            y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
                        }
                    }
                },
            )
        });
    tensor(y, [t, d])
}

fn backward(
    x: Tensor<Flex, 2>,
    gamma: Tensor<Flex, 1>,
    dy: Tensor<Flex, 2>,
    epsilon: f32,
    wanted: [bool; 3],
) -> Gradients<Flex> {
    let [t, d] = x.dims();
    let (x, gamma, dy) = (Values::of(x), Values::of(gamma), Values::of(dy));
    let gamma = &gamma[..d];
    let mut dx = vec![0.0; t * d];
    let task = rows_per_task(d) * d;
    let blocks: Vec<(Vec<f32>, Vec<f32>)> = (dx.par_chunks_mut(task))
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .map(|(dx, (x, dy))| {
            let (mut dgamma, mut dbeta) = (vec![0.0; d], vec![0.0; d]);
            vectorised(
                #[inline(always)]
                || {
                    let (dgamma, dbeta) = (&mut dgamma[..d], &mut dbeta[..d]);
                    for r in 0..x.len() / d {
                        let rows = r * d..(r + 1) * d;
                        let (dx, x, dy) = (&mut dx[rows.clone()], &x[rows.clone()], &dy[rows]);
                        let (mean, inverse) = statistics(x, epsilon);
                        for (dx, (dy, gamma)) in dx.iter_mut().zip(dy.iter().zip(gamma)) {
                            *dx = dy * gamma;
                        }
                        let mean_g = sum(dx, |g| g) / d as f32;
                        let along = sum_pairs(dx, x, |g, x| g * (x - mean)) * inverse / d as f32;
                        for i in 0..d {
                            let normalised = (x[i] - mean) * inverse;
                            dx[i] = (dx[i] - mean_g - normalised * along) * inverse;
                            dgamma[i] += dy[i] * normalised;
                            dbeta[i] += dy[i];
                        }
                    }
                },
            );
            (dgamma, dbeta)
        })
        .collect();
    let (dgamma, dbeta) = blocks.into_iter().unzip();
    (
        wanted[0].then(|| tensor(dx, [t, d])),
        wanted[1].then(|| tensor(add_up(dgamma, d), [d])),
        wanted[2].then(|| tensor(add_up(dbeta, d), [d])),
    )
}
