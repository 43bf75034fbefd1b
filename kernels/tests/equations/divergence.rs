//! Stage 3's loss by other divergences, and over the teacher's likeliest tokens.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::losses::divergence::top_classes::TopClassesLoss;
use kernels::runtime::{Flex, NdArray64};
use kernels::{
    Comparison, DistillationWeights, Divergence, TopClasses, TopClassesInputs, divergence_block,
    divergence_loss, top_classes_block,
};
use tests::assert_close;

use crate::support::*;

struct Case {
    student: Values,
    teacher: Values,
    labels: Vec<i64>,
    weights: DistillationWeights,
    comparison: Comparison,
}

impl Case {
    fn labels<B: Backend>(&self) -> Option<Tensor<B, 1, Int>> {
        let labels = TensorData::new(self.labels.clone(), [self.labels.len()]);
        (self.weights.hard > 0.0).then(|| Tensor::from_data(labels, &Default::default()))
    }

    /// The loss, written out one number at a time.
    fn equation(&self) -> f64 {
        let v = self.student.0[1];
        let Comparison { divergence, top_k } = self.comparison;
        let softmax = |logits: &[f64], scale: f64| -> Vec<f64> {
            let exponentials: Vec<_> = logits.iter().map(|x| (x * scale).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            exponentials.iter().map(|e| e / sum).collect()
        };
        let rows = self.student.1.chunks(v).zip(self.teacher.1.chunks(v));
        let losses = rows.zip(&self.labels).map(|((student, teacher), label)| {
            let p = softmax(student, 1.0 / self.weights.temperature);
            let q = softmax(teacher, 1.0);
            let mut sorted = teacher.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = match top_k {
                0 => f64::NEG_INFINITY,
                k => sorted[k.min(v) - 1],
            };
            let (mut classes, mut others) = (vec![], (0.0, 0.0));
            for i in 0..v {
                if teacher[i] >= least {
                    classes.push((p[i], q[i]));
                } else {
                    others.0 += p[i];
                    others.1 += q[i];
                }
            }
            if others.1 > 0.0 {
                classes.push(others);
            }
            let terms = classes.into_iter().map(|(p, q)| match divergence {
                Divergence::ForwardKl => -q * p.ln(),
                Divergence::ReverseKl => p * (p / q).ln(),
            });
            let hard = self.weights.hard;
            (1.0 - hard) * terms.sum::<f64>() - hard * p[*label as usize].ln()
        });
        losses.sum::<f64>() / self.labels.len() as f64
    }

    /// The definition, with the gradient that Burn takes.
    fn definition(&self) -> Vec<Values> {
        let student = tensor::<Exact, 2>(self.student.clone()).require_grad();
        let loss = divergence_loss(
            student.clone(),
            tensor(self.teacher.clone()),
            self.labels(),
            self.weights,
            self.comparison,
        );
        let gradient = student.grad(&loss.backward()).expect("a gradient");
        vec![values(loss.inner()), values(gradient)]
    }

    /// The same in blocks of so many tokens.
    fn blocks<B: Backend>(&self, block: usize) -> Vec<Values> {
        let t = self.student.0[0];
        let [student, teacher] =
            [&self.student, &self.teacher].map(|logits| tensor::<B, 2>(logits.clone()));
        let parts = (0..t).step_by(block).map(|start| {
            let n = block.min(t - start);
            let labels = self.labels();
            divergence_block(
                student.clone().narrow(0, start, n),
                teacher.clone().narrow(0, start, n),
                labels.map(|labels| labels.narrow(0, start, n)),
                self.weights,
                self.comparison,
                t,
            )
        });
        let (losses, gradients): (Vec<_>, Vec<_>) = parts.unzip();
        let loss = Tensor::cat(losses, 0).sum();
        vec![values(loss), values(Tensor::cat(gradients, 0))]
    }
}

/// What a cache keeps of `teacher`'s logits: of each row the `k` largest logarithms of probabilities with their ids, and
/// the logarithm of the sum of the others.
fn top<B: Backend>((shape, logits): &Values, k: usize) -> TopClasses<B> {
    let [t, v] = [shape[0], shape[1]];
    let (mut ids, mut log_q, mut log_rest) = (vec![], vec![], vec![]);
    for row in logits.chunks(v) {
        let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        let mut sorted: Vec<usize> = (0..v).collect();
        sorted.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let (first, others) = sorted.split_at(k);
        ids.extend(first.iter().map(|&id| id as i64));
        log_q.extend(first.iter().map(|&id| row[id] - log_sum));
        let rest: f64 = others.iter().map(|&id| (row[id] - log_sum).exp()).sum();
        log_rest.push(rest.ln().max(-60_000.0));
    }
    TopClasses {
        ids: Tensor::from_data(TensorData::new(ids, [t, k]), &Default::default()),
        log_q: tensor((vec![t, k], log_q)),
        log_rest: tensor((vec![t, 1], log_rest)),
    }
}

impl Case {
    /// The same from what a cache keeps, in blocks of so many tokens.
    fn of_top<B: TopClassesLoss>(&self, block: usize) -> Vec<Values> {
        let [t, v] = [self.student.0[0], self.student.0[1]];
        let k = match self.comparison.top_k {
            0 => v,
            k => k.min(v),
        };
        let (student, teacher) = (tensor::<B, 2>(self.student.clone()), top(&self.teacher, k));
        let parts = (0..t).step_by(block).map(|start| {
            let n = block.min(t - start);
            let labels = self.labels();
            let inputs = TopClassesInputs {
                student: student.clone().narrow(0, start, n),
                teacher: teacher.narrow(start, n),
                labels: labels.map(|labels| labels.narrow(0, start, n)),
                weights: self.weights,
                divergence: self.comparison.divergence,
            };
            top_classes_block(inputs, t)
        });
        let (losses, gradients): (Vec<_>, Vec<_>) = parts.unzip();
        let loss = Tensor::cat(losses, 0).sum();
        vec![values(loss), values(Tensor::cat(gradients, 0))]
    }
}

/// A cache of the likeliest ids gives the loss over these classes, and one of all ids the loss over all.
#[test]
fn the_top_alone_gives_the_same_loss() {
    for case in cases() {
        let name = format!("{:?}, {:?}", case.comparison, case.weights);
        let definition = case.definition();
        for block in [5, 2] {
            let exact = case.of_top::<NdArray64>(block);
            let equation = (vec![1], vec![case.equation()]);
            assert_close(&name, exact[0].clone(), equation, F64_TOLERANCE);
            agree(&name, exact, definition.clone(), F64_TOLERANCE);
            let fast = case.of_top::<Flex>(block);
            agree(&name, fast, definition.clone(), F32_TOLERANCE);
        }
    }
}

/// Half precision, and logits far from each other.
#[test]
fn the_top_alone_stays_finite() {
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl] {
        let inputs = |student| TopClassesInputs {
            student,
            teacher: top::<Flex>(&(vec![1, 4], vec![-90.0, 90.0, 0.0, -1e4]), 2),
            labels: None,
            weights: DistillationWeights::default(),
            divergence,
        };
        let student = tensor::<Flex, 2>((vec![1, 4], vec![90.0, -90.0, 0.0, -1e4]));
        let (loss, gradient) = top_classes_block(inputs(student.clone().cast(DType::BF16)), 1);
        assert_eq!((loss.dtype(), gradient.dtype()), (DType::F32, DType::BF16));
        let (loss, gradient) = top_classes_block(inputs(student), 1);
        for found in [values(loss), values(gradient)] {
            assert!(found.1.iter().all(|x| x.is_finite()), "{found:?}");
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl] {
        for (top_k, temperature, hard) in [
            (0, 1.0, 0.0),
            (0, 2.5, 0.3),
            (1, 1.0, 0.0),
            (3, 0.7, 0.0),
            (10, 1.0, 0.4),
            (10, 1.0, 1.0),
            // All but one, all, and more than there are.
            (20, 1.0, 0.0),
            (21, 1.0, 0.0),
            (50, 1.0, 0.0),
        ] {
            let [t, v] = [5, 21];
            cases.push(Case {
                student: random(1, &[t, v], 6.0),
                teacher: random(2, &[t, v], 6.0),
                labels: (0..t as i64).map(|i| i * 8 % v as i64).collect(),
                weights: DistillationWeights { temperature, hard },
                comparison: Comparison { divergence, top_k },
            });
        }
    }
    cases
}

#[test]
fn divergences_equal_their_equations() {
    for case in cases() {
        let name = format!("{:?}, {:?}", case.comparison, case.weights);
        let definition = case.definition();
        let equation = (vec![1], vec![case.equation()]);
        assert_close(&name, definition[0].clone(), equation, F64_TOLERANCE);
        for block in [5, 2] {
            let exact = case.blocks::<NdArray64>(block);
            agree(&name, exact, definition.clone(), F64_TOLERANCE);
            let fast = case.blocks::<Flex>(block);
            agree(&name, fast, definition.clone(), F32_TOLERANCE);
        }
    }
}

/// Both divergences are least, and flat, where the student agrees with the teacher about the classes.
#[test]
fn agreement_is_the_least() {
    for mut case in cases() {
        if case.weights.hard > 0.0 || case.weights.temperature != 1.0 {
            continue;
        }
        case.student = case.teacher.clone();
        let [loss, gradient] = case.blocks::<NdArray64>(5).try_into().unwrap();
        let largest = gradient.1.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        assert!(largest < 1e-15, "{:?}: {largest}", case.comparison);
        match case.comparison.divergence {
            Divergence::ForwardKl => assert!(loss.1[0] > 0.0, "the entropy of the teacher"),
            Divergence::ReverseKl => assert!(loss.1[0].abs() < 1e-15, "{}", loss.1[0]),
        }
    }
}

/// Ids that are exactly as likely as the last of the top ids also belong to the top, which is then larger. Computed by
/// hand: with a top of two, these are the first three ids; the student has half of its probability there and half on
/// the others.
#[test]
fn ties_are_all_at_the_top() {
    let logits = |p: [f64; 5]| (vec![1, 5], p.map(f64::ln).to_vec());
    let case = |divergence| Case {
        student: logits([0.25, 0.125, 0.125, 0.25, 0.25]),
        teacher: logits([0.25, 0.25, 0.25, 0.125, 0.125]),
        labels: vec![0],
        weights: DistillationWeights::default(),
        comparison: Comparison {
            divergence,
            top_k: 2,
        },
    };
    // The others: the student has 1/2 there, the teacher 1/4.
    let ln2 = 2f64.ln();
    for (divergence, expected) in [
        (
            Divergence::ForwardKl,
            0.25 * (2.0 + 3.0 + 3.0) * ln2 + 0.25 * ln2,
        ),
        (Divergence::ReverseKl, -0.25 * ln2 + 0.5 * ln2),
    ] {
        let [loss, _] = case(divergence).blocks::<NdArray64>(1).try_into().unwrap();
        let expected = (vec![1], vec![expected]);
        assert_close(&format!("{divergence:?}"), loss, expected, 1e-12);
    }
    // With all of one probability, no other id is left.
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl] {
        let mut even = case(divergence);
        even.teacher = logits([0.2; 5]);
        let definition = even.definition();
        even.comparison.top_k = 0;
        agree("all equal", definition, even.definition(), 1e-12);
    }
}

/// Forward KL over all tokens is what the fused loss computes.
#[test]
fn forward_kl_is_the_fused_loss() {
    for case in cases() {
        let every = Comparison {
            divergence: Divergence::ForwardKl,
            top_k: 0,
        };
        if case.comparison != every {
            continue;
        }
        let t = case.student.0[0];
        let (loss, gradient) = kernels::distillation_block::<NdArray64>(
            tensor(case.student.clone()),
            tensor(case.teacher.clone()),
            case.labels(),
            case.weights,
            t,
        );
        let fused = vec![values(loss), values(gradient)];
        agree("forward", case.blocks::<NdArray64>(5), fused, F64_TOLERANCE);
    }
}

/// Logits far from each other, as those of a vocabulary that is padded: no part is infinite or undefined.
#[test]
fn extreme_logits_stay_finite() {
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl] {
        for top_k in [0, 1, 2] {
            let case = Case {
                student: (vec![1, 4], vec![90.0, -90.0, 0.0, -1e4]),
                teacher: (vec![1, 4], vec![-90.0, 90.0, 0.0, -1e4]),
                labels: vec![0],
                weights: DistillationWeights::default(),
                comparison: Comparison { divergence, top_k },
            };
            for values in case.blocks::<Flex>(1) {
                assert!(
                    values.1.iter().all(|x| x.is_finite()),
                    "{:?}: {values:?}",
                    case.comparison
                );
            }
        }
    }
}

/// Half-precision logits of the student: the gradient is in their dtype, the loss in f32.
#[test]
fn half_precision_is_widened() {
    let (student, teacher) = (random(1, &[3, 9], 4.0), random(2, &[3, 9], 4.0));
    let comparison = Comparison {
        divergence: Divergence::ReverseKl,
        top_k: 4,
    };
    let (loss, gradient) = divergence_block::<Flex>(
        tensor::<Flex, 2>(student).cast(DType::BF16),
        tensor(teacher),
        None,
        DistillationWeights::default(),
        comparison,
        3,
    );
    assert_eq!((loss.dtype(), gradient.dtype()), (DType::F32, DType::BF16));
}
