//! On slices, token by token: a row of logits stays in the cache from its maximum to its gradient,
//! and each exponential is taken once.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;
use rayon::prelude::*;

use super::{DistillationInputs, DistillationWeights, Predictions, reference};
use crate::flex::math::{dot, exp, max, sum, vectorised};
use crate::flex::{Values, integers, is_f32, tensor};

impl Predictions for Flex {
    fn distillation_loss_forward(inputs: DistillationInputs<Self>) -> Tensor<Self, 1> {
        if fits(&inputs) {
            forward(inputs)
        } else {
            reference::forward(inputs)
        }
    }

    fn distillation_loss_with_gradient(
        inputs: DistillationInputs<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !fits(&inputs) {
            return reference::with_gradient(inputs);
        }
        let [tokens, _] = inputs.student.dims();
        block(inputs, tokens)
    }

    fn distillation_block(
        inputs: DistillationInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if fits(&inputs) {
            block(inputs, tokens)
        } else {
            reference::block(inputs, tokens)
        }
    }
}

fn fits(inputs: &DistillationInputs<Flex>) -> bool {
    is_f32(&inputs.student) && is_f32(&inputs.teacher)
}

/// What every token's loss needs beside its logits.
struct Loss {
    /// One over the temperature.
    scale: f32,
    hard: f32,
    soft: f32,
    labels: Option<Vec<i64>>,
}

impl Loss {
    fn new(labels: Option<Tensor<Flex, 1, Int>>, weights: DistillationWeights) -> Self {
        let labels = labels.filter(|_| weights.hard > 0.0).map(integers);
        let hard = if labels.is_some() {
            weights.hard as f32
        } else {
            0.0
        };
        Self {
            scale: 1.0 / weights.temperature as f32,
            hard,
            soft: 1.0 - hard,
            labels,
        }
    }

    /// The loss of one token. Leaves in `gradient` its gradient to the student's logits, times
    /// `factor`; `teacher_exp` is scratch.
    #[inline(always)]
    fn token(
        &self,
        token: usize,
        student: &[f32],
        teacher: &[f32],
        factor: f32,
        gradient: &mut [f32],
        teacher_exp: &mut [f32],
    ) -> f32 {
        let scale = self.scale;
        // The student's exponentials, relative to its largest logit: softmax is `gradient / total`.
        let largest = max(student);
        for (e, s) in gradient.iter_mut().zip(student) {
            *e = exp(scale * (s - largest));
        }
        let total = sum(gradient, |e| e);
        let of_student = factor * scale / total;

        let mut loss = 0.0;
        if self.soft > 0.0 {
            let teacher_largest = max(teacher);
            for (e, q) in teacher_exp.iter_mut().zip(teacher) {
                *e = exp(q - teacher_largest);
            }
            let teacher_total = sum(teacher_exp, |e| e);
            // The cross-entropy: ln(total) minus the student's mean logit under the teacher.
            let mean = dot(teacher_exp, student) / teacher_total;
            loss += self.soft * (total.ln() - scale * (mean - largest));
            let of_teacher = factor * scale * self.soft / teacher_total;
            for (e, q) in gradient.iter_mut().zip(&*teacher_exp) {
                *e = of_student * *e - of_teacher * q;
            }
        } else {
            for e in gradient.iter_mut() {
                *e *= of_student;
            }
        }
        if let Some(labels) = &self.labels {
            let label = labels[token] as usize;
            loss += self.hard * (total.ln() - scale * (student[label] - largest));
            gradient[label] -= factor * scale * self.hard;
        }
        loss
    }
}

/// The sum of `losses` over `tokens`.
fn mean(losses: &[f32], tokens: usize) -> Tensor<Flex, 1> {
    let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    tensor(vec![(sum / tokens as f64) as f32], [1])
}

fn forward(inputs: DistillationInputs<Flex>) -> Tensor<Flex, 1> {
    let [_, v] = inputs.student.dims();
    let (student, teacher) = (Values::of(inputs.student), Values::of(inputs.teacher));
    let loss = Loss::new(inputs.labels, inputs.weights);
    let scratch = || (vec![0.0; v], vec![0.0; v]);
    let losses: Vec<f32> = (student.par_chunks(v).zip(teacher.par_chunks(v)).enumerate())
        .with_min_len(16)
        .map_init(scratch, |(gradient, teacher_exp), (token, (s, q))| {
            vectorised(
                #[inline(always)]
                || loss.token(token, s, q, 0.0, gradient, teacher_exp),
            )
        })
        .collect();
    mean(&losses, losses.len())
}

fn block(inputs: DistillationInputs<Flex>, tokens: usize) -> (Tensor<Flex, 1>, Tensor<Flex, 2>) {
    let [t, v] = inputs.student.dims();
    let (student, teacher) = (Values::of(inputs.student), Values::of(inputs.teacher));
    let loss = Loss::new(inputs.labels, inputs.weights);
    let factor = 1.0 / tokens as f32;
    let mut gradient = vec![0.0; t * v];
    let logits = student.par_chunks(v).zip(teacher.par_chunks(v));
    let losses: Vec<f32> = (gradient.par_chunks_mut(v).zip(logits).enumerate())
        .with_min_len(16)
        .map_init(
            || vec![0.0; v],
            |teacher_exp, (token, (gradient, (s, q)))| {
                vectorised(
                    #[inline(always)]
                    || loss.token(token, s, q, factor, gradient, teacher_exp),
                )
            },
        )
        .collect();
    (mean(&losses, tokens), tensor(gradient, [t, v]))
}
