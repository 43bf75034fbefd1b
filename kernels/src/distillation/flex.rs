//! On slices, token by token: a row of logits stays in the cache from its maximum to its gradient.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;
use rayon::prelude::*;

use super::DistillationWeights;
use crate::flex::math::{exp, max, sum, vectorised};
use crate::flex::{Values, integers, tensor};

/// The largest logit, and the sum of `e^(scale (logit - largest))`.
#[inline(always)]
fn partition(logits: &[f32], scale: f32) -> (f32, f32) {
    let largest = max(logits);
    (
        largest,
        sum(logits.len(), |i| exp(scale * (logits[i] - largest))),
    )
}

pub(crate) fn forward(
    student: Tensor<Flex, 2>,
    teacher: Tensor<Flex, 2>,
    labels: Option<Tensor<Flex, 1, Int>>,
    weights: DistillationWeights,
) -> Tensor<Flex, 1> {
    let [t, v] = student.dims();
    let (student, teacher) = (Values::of(student), Values::of(teacher));
    let labels = labels.filter(|_| weights.hard > 0.0).map(integers);
    let (scale, hard) = (1.0 / weights.temperature as f32, weights.hard as f32);
    let losses: Vec<f32> = (student.par_chunks(v).zip(teacher.par_chunks(v)).enumerate())
        .with_min_len(16)
        .map(|(token, (s, q))| {
            vectorised(
                #[inline(always)]
                || {
                    let (largest_s, sum_s) = partition(s, scale);
                    // log softmax(s)[i] = scale (s[i] - largest) - ln(sum)
                    let log_s = |i: usize| scale * (s[i] - largest_s) - sum_s.ln();
                    let label = labels.as_ref().map(|labels| labels[token] as usize);
                    let mut loss = label.map_or(0.0, |label| -hard * log_s(label));
                    let soft = if label.is_some() { 1.0 - hard } else { 1.0 };
                    if soft > 0.0 {
                        let (largest_q, sum_q) = partition(q, 1.0);
                        let expected =
                            sum(v, |i| exp(q[i] - largest_q) * (s[i] - largest_s)) / sum_q;
                        loss += soft * (sum_s.ln() - scale * expected);
                    }
                    loss
                },
            )
        })
        .collect();
    let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / t as f64;
    tensor(vec![mean as f32], [1])
}

pub(crate) fn backward(
    student: Tensor<Flex, 2>,
    teacher: Tensor<Flex, 2>,
    labels: Option<Tensor<Flex, 1, Int>>,
    weights: DistillationWeights,
    dloss: Tensor<Flex, 1>,
) -> Tensor<Flex, 2> {
    let [t, v] = student.dims();
    let (student, teacher, dloss) = (Values::of(student), Values::of(teacher), Values::of(dloss));
    let labels = labels.filter(|_| weights.hard > 0.0).map(integers);
    let (scale, hard) = (1.0 / weights.temperature as f32, weights.hard as f32);
    let factor = dloss[0] * scale / t as f32;
    let soft = if labels.is_some() { 1.0 - hard } else { 1.0 };
    let mut gradient = vec![0.0; t * v];
    gradient
        .par_chunks_mut(v)
        .zip(student.par_chunks(v).zip(teacher.par_chunks(v)))
        .enumerate()
        .with_min_len(16)
        .for_each(|(token, (gradient, (s, q)))| {
            vectorised(
                #[inline(always)]
                || {
                    let (largest_s, sum_s) = partition(s, scale);
                    let (largest_q, sum_q) = partition(q, 1.0);
                    let (of_s, of_q) = (factor / sum_s, factor * soft / sum_q);
                    for i in 0..v {
                        gradient[i] =
                            of_s * exp(scale * (s[i] - largest_s)) - of_q * exp(q[i] - largest_q);
                    }
                },
            );
            if let Some(labels) = &labels {
                gradient[labels[token] as usize] -= factor * hard;
            }
        });
    tensor(gradient, [t, v])
}
