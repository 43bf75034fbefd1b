//! What the training loop computes, against the published code's: the gradients of each stage's
//! pass, and five AdamW steps of stage 3, of a Phi's student and of a Llama's.
//!
//! The tests of `model` compare the losses that the networks offer; here it is the passes of `train`, which
//! go layer by layer, its sums of gradients, and its optimizer.

mod support;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use model::{Family, ModelConfig, PhiMamba, named_parameters};
use support::passes::{Lesson, config, stages};
use tests::networks::mohawk::{RECORDED, Recorded};
use tests::networks::*;
use tests::{Values, assert_close};
use train::config::{Decay, Optimizer};
use train::optimizer::AdamW;
use train::stages::Kind;
use train::stages::predictions::Predictions;

#[test]
fn stages_exact() {
    for recorded in RECORDED {
        stages::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn stages_flex() {
    for recorded in RECORDED {
        stages::<Autodiff<Fast>>(recorded, FAST);
    }
}

/// A share of the loss is the cross-entropy of the next tokens, each in its place. The published code
/// has no hard labels, so this is held against the definition.
#[test]
fn hard_labels() {
    type B = Autodiff<Exact>;
    let mut lesson = Lesson::<B>::open(RECORDED[0]);
    let [b, l] = lesson.batch.ids.dims();
    let labels: Vec<i64> = (0..(b * l) as i64).map(|i| 7 * i % 50).collect();
    let device = Default::default();
    lesson.batch.labels = Tensor::from_data(TensorData::new(labels.clone(), [b, l]), &device);
    let (found, _) = lesson.pass(&Kind::Predictions(Predictions {
        temperature: 2.0,
        hard_weight: 0.3,
        recompute: false,
    }));

    let ids = lesson.batch.ids.clone();
    let student = values(
        lesson
            .student
            .valid()
            .logits(lesson.student.valid().features(ids.clone())),
    );
    let teacher = values(lesson.teacher.logits(lesson.teacher.features(ids)));
    let v = student.0[2];
    let rows = student.1.chunks(v).zip(teacher.1.chunks(v)).zip(labels);
    let losses = rows.map(|((student, teacher), label)| {
        let log_sum = student.iter().map(|s| (s / 2.0).exp()).sum::<f64>().ln();
        let log_p: Vec<_> = student.iter().map(|s| s / 2.0 - log_sum).collect();
        let sum: f64 = teacher.iter().map(|t| t.exp()).sum();
        let soft: f64 = teacher
            .iter()
            .zip(&log_p)
            .map(|(t, p)| -t.exp() / sum * p)
            .sum();
        0.7 * soft - 0.3 * log_p[label as usize]
    });
    let expected = losses.sum::<f64>() / (b * l) as f64;
    assert!(
        (found / expected - 1.0).abs() < 1e-12,
        "{found} and {expected}"
    );
}

/// Every parameter's name and values.
fn parameters<B: Backend>(config: &ModelConfig, model: &PhiMamba<B>) -> Vec<(String, Values)> {
    struct Collect(Vec<Values>);
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            self.0.push(values(parameter.val()));
        }
    }
    let mut collect = Collect(vec![]);
    model.visit(&mut collect);
    let names = named_parameters(model, config.layout());
    let names = names.into_iter().map(|parameter| parameter.name);
    names.zip(collect.0).collect()
}

/// Five steps at a constant rate, as recorded.
fn five_steps<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    let config = config(&[]);
    let mut lesson = Lesson::<B>::open(recorded);
    let mut optimizer = AdamW::new(&Optimizer {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        decay: Decay::All,
        clip_norm: 1.0,
    });
    let (mut losses, mut norms) = (vec![], vec![]);
    for _ in 0..5 {
        let (loss, gradients) = lesson.pass(&config.stage("stage3").expect("a stage").kind);
        let norm = gradients.norm().expect("gradients");
        losses.push(loss);
        norms.push(values(norm.clone()).1[0]);
        let scale = optimizer.scale(norm.clone(), norm, 1);
        lesson.student = optimizer.step(lesson.student, gradients, scale, |_| Some(1e-3));
    }
    let Lesson {
        goldens,
        student,
        student_config,
        ..
    } = &lesson;
    for (key, found) in [("adamw_losses", losses), ("adamw_grad_norms", norms)] {
        let key = format!("stage3.{key}");
        assert_close(&key, (vec![5], found), goldens.f64(&key), tolerance);
    }
    let mut compared = 0;
    for (name, values) in parameters(student_config, student) {
        let key = format!("stage3.after5.{name}");
        assert_close(&key, values, goldens.f64(&key), tolerance);
        compared += 1;
    }
    let recorded = goldens.keys().into_iter();
    let recorded = recorded.filter(|key| key.starts_with("stage3.after5."));
    assert_eq!(compared, recorded.count(), "parameters compared");
}

#[test]
fn five_steps_exact() {
    for recorded in RECORDED {
        five_steps::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn five_steps_flex() {
    for recorded in RECORDED {
        five_steps::<Autodiff<Fast>>(recorded, FAST);
    }
}
