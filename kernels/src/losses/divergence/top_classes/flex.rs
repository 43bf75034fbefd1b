//! On slices, token by token: each exponential of the student's logits is taken once, in the place of the gradient.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::super::Divergence;
use super::{TopClassesInputs, TopClassesLoss, reference};
use crate::flex::math::{exp, max, sum, vectorised};
use crate::flex::{Values, integers, is_f32, tensor};

impl TopClassesLoss for Flex {
    fn top_classes_block(
        inputs: TopClassesInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let teacher = &inputs.teacher;
        if is_f32(&inputs.student) && is_f32(&teacher.log_q) && is_f32(&teacher.log_rest) {
            block(inputs, tokens)
        } else {
            reference::block(inputs, tokens)
        }
    }
}

/// What the losses of all tokens share.
struct Loss {
    /// One over the temperature.
    scale: f32,
    hard: f32,
    soft: f32,
    divergence: Divergence,
    /// One over the tokens of the batch.
    factor: f32,
}

/// What is known of one token.
struct Token<'a> {
    student: &'a [f32],
    ids: &'a [usize],
    log_q: &'a [f32],
    log_rest: f32,
    label: Option<usize>,
}

impl Loss {
    /// What a class adds to the loss, and its slope, as of `Divergence::terms`.
    #[inline(always)]
    fn term(&self, p: f32, log_p: f32, log_q: f32) -> (f32, f32) {
        match self.divergence {
            Divergence::ForwardKl => {
                let slope = -exp(log_q);
                (slope * log_p, slope)
            }
            Divergence::ReverseKl => {
                let term = p * (log_p - log_q);
                (term, term)
            }
        }
    }

    /// The loss of one token. Leaves in `gradient` its gradient to the student's logits, times the factor; `top` is
    /// scratch, as long as the ids are many.
    #[inline(always)]
    fn token(&self, token: &Token<'_>, gradient: &mut [f32], top: &mut [f32]) -> f32 {
        let Token { student, ids, .. } = *token;
        let scale = self.scale;
        // The student's exponentials, relative to its largest logit; those of the top are moved out.
        let largest = max(student);
        for (e, s) in gradient.iter_mut().zip(student) {
            *e = exp(scale * (s - largest));
        }
        for (slot, &id) in top.iter_mut().zip(ids) {
            *slot = std::mem::take(&mut gradient[id]);
        }
        let has_others = ids.len() < student.len();
        let mut others = if has_others {
            sum(gradient, |e| e)
        } else {
            0.0
        };
        // Of a student that is sure of the top: the logarithm stays finite. NaN stays NaN.
        if others < f32::MIN_POSITIVE {
            others = f32::MIN_POSITIVE;
        }
        let total = others + sum(top, |e| e);
        let log_total = total.ln();
        let log_p = |id: usize| scale * (student[id] - largest) - log_total;

        // `top` holds the slopes from here on.
        let (mut loss, mut slopes) = (0.0, 0.0);
        for ((slot, &id), &log_q) in top.iter_mut().zip(ids).zip(token.log_q) {
            let (term, slope) = self.term(*slot / total, log_p(id), log_q);
            // The gradient needs the exponential again, which waits in its own place.
            gradient[id] = *slot;
            *slot = slope;
            loss += term;
            slopes += slope;
        }
        let mut of_others = 0.0;
        if has_others {
            let log_p = others.ln() - log_total;
            let (term, slope) = self.term(others / total, log_p, token.log_rest);
            loss += term;
            slopes += slope;
            of_others = slope;
        }

        // A logit raises its own log p by 1, and lowers each by the probability of its own id.
        let step = self.factor * scale;
        let all = (self.hard - self.soft * slopes) / total;
        let other = if has_others {
            step * (all + self.soft * of_others / others)
        } else {
            0.0
        };
        // What is at the top is put right below.
        for (slot, &id) in top.iter_mut().zip(ids) {
            *slot = step * (all * gradient[id] + self.soft * *slot);
        }
        for e in gradient.iter_mut() {
            *e *= other;
        }
        for (slot, &id) in top.iter().zip(ids) {
            gradient[id] = *slot;
        }
        match token.label {
            Some(label) => {
                gradient[label] -= step * self.hard;
                self.soft * loss - self.hard * log_p(label)
            }
            None => loss,
        }
    }
}

fn block(inputs: TopClassesInputs<Flex>, tokens: usize) -> (Tensor<Flex, 1>, Tensor<Flex, 2>) {
    let TopClassesInputs {
        student,
        teacher,
        labels,
        weights,
        divergence,
    } = inputs;
    let ([t, v], [_, k]) = (student.dims(), teacher.ids.dims());
    let labels = labels.filter(|_| weights.hard > 0.0).map(integers);
    let hard = if labels.is_some() {
        weights.hard as f32
    } else {
        0.0
    };
    let loss = Loss {
        scale: 1.0 / weights.temperature as f32,
        hard,
        soft: 1.0 - hard,
        divergence,
        factor: 1.0 / tokens as f32,
    };
    let [student, log_q, log_rest] = [student, teacher.log_q, teacher.log_rest].map(Values::of);
    let (log_q, log_rest): (&[f32], &[f32]) = (&log_q, &log_rest);
    let ids: Vec<usize> = integers(teacher.ids)
        .into_iter()
        .map(|id| id as usize)
        .collect();
    let mut gradient = vec![0.0; t * v];
    let rows = gradient.par_chunks_mut(v).zip(student.par_chunks(v));
    let losses: Vec<f32> = (rows.enumerate())
        .with_min_len(16)
        .map_init(
            || vec![0.0; k],
            |top, (number, (gradient, student))| {
                let token = Token {
                    student,
                    ids: &ids[number * k..][..k],
                    log_q: &log_q[number * k..][..k],
                    log_rest: log_rest[number],
                    label: labels.as_ref().map(|labels| labels[number] as usize),
                };
                vectorised(
                    #[inline(always)]
                    || loss.token(&token, gradient, top),
                )
            },
        )
        .collect();
    let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    let mean = tensor(vec![(sum / tokens as f64) as f32], [1]);
    (mean, tensor(gradient, [t, v]))
}
