//! Stage 3's loss.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use kernels::losses::predictions::{DistillationInputs, reference};
use kernels::{DistillationWeights, TrainBackend};

use crate::support::*;

struct Distillation {
    student: Values,
    teacher: Values,
    labels: Option<Vec<i64>>,
    weights: DistillationWeights,
}

impl Distillation {
    fn labels<B: Backend>(&self) -> Option<Tensor<B, 1, Int>> {
        let labels = self.labels.as_ref()?;
        Some(Tensor::from_data(
            TensorData::new(labels.clone(), [labels.len()]),
            &Default::default(),
        ))
    }
}

fn distillation<B: TrainBackend>(c: &Distillation) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (student, teacher) = (trace.input(&c.student), tensor(c.teacher.clone()));
    trace.finish(kernels::distillation_loss(
        student,
        teacher,
        c.labels(),
        c.weights,
    ))
}

fn distillation_definition<B: TrainBackend>(c: &Distillation) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (student, teacher) = (trace.input(&c.student), tensor(c.teacher.clone()));
    let loss = reference::forward(DistillationInputs {
        student,
        teacher,
        labels: c.labels(),
        weights: c.weights,
    });
    trace.finish(loss)
}

#[test]
fn distillation_loss_is_right() {
    for ([t, v], temperature, hard) in [
        ([1, 5], 1.0, 0.0),
        ([40, 104], 1.0, 0.0),
        ([40, 104], 2.5, 0.0),
        ([40, 105], 0.7, 0.3),
        ([3, 4096], 1.0, 1.0),
    ] {
        let case = Distillation {
            student: random(1, &[t, v], 8.0),
            teacher: random(2, &[t, v], 8.0),
            labels: Some((0..t as i64).map(|i| i * 7 % v as i64).collect()),
            weights: DistillationWeights { temperature, hard },
        };
        check!("distillation", distillation, distillation_definition, &case);
    }
}
