//! What the training loop computes, against the published code's: the gradients of each stage's
//! pass, and five AdamW steps of stage 3, of `student-tiny` taught by `teacher-tiny`.
//!
//! `mohawk.rs` compares the losses that the networks offer; here it is `train`'s own passes, which
//! go layer by layer, its sums of gradients, and its optimizer.

mod support;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::{DistillationWeights, TrainBackend};
use model::{Layout, Phi, PhiMamba, named_parameters};
use support::*;
use tests::{Goldens, Values, assert_close, goldens_dir};
use train::config::{Config, Decay, Optimizer, Source};
use train::gradients::Gradients;
use train::optimizer::AdamW;
use train::stage::{Objective, TokenBatch, train_parts};

/// Both networks, and the recorded ids as a batch.
struct Lesson<B: TrainBackend> {
    goldens: Goldens,
    teacher: Phi<B::InnerBackend>,
    student: PhiMamba<B>,
    batch: TokenBatch<B>,
}

impl<B: TrainBackend> Lesson<B> {
    fn open() -> Self {
        let device = Default::default();
        let goldens = Goldens::open("mohawk-tiny/expected");
        let load = |name| goldens_dir().join(name);
        let (_, teacher) = model::load_teacher(load("teacher-tiny"), &device).expect("a teacher");
        let (_, student) = model::load_student(load("student-tiny"), &device).expect("a student");
        let ids = ids(&goldens, "input_ids", &device);
        // The labels are read with hard labels only, which the published code has not.
        let labels = ids.clone();
        let batch = TokenBatch { ids, labels };
        Self {
            goldens,
            teacher,
            student,
            batch,
        }
    }

    /// The loss of one pass and its gradients.
    fn pass(&self, objective: Objective) -> (f64, Gradients<B::InnerBackend>) {
        let mut gradients = Gradients::default();
        let (student, batch) = (&self.student, self.batch.clone());
        let loss = objective.pass(student, &self.teacher, batch, &mut gradients);
        (values(loss).1[0], gradients)
    }
}

fn config(overrides: &[&str]) -> Config {
    let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
    Config::load(Source::Preset("tiny"), &overrides).expect("a configuration")
}

/// The pass of stage `number`: its loss is the sum of those recorded under `loss`, its gradients are
/// those under `prefix`, and there are no others.
fn stage<B: TrainBackend>(config: &Config, number: u8, loss: &str, prefix: &str, tolerance: f64) {
    let mut lesson = Lesson::<B>::open();
    lesson.student = train_parts(lesson.student, config.stage(number));
    let (found, mut gradients) = lesson.pass(Objective::of(config, number));
    let expected: f64 = lesson.goldens.f64(loss).1.iter().sum();
    let one = |value| (vec![1], vec![value]);
    assert_close(loss, one(found), one(expected), tolerance);

    let mut squares = 0.0;
    let norm = values(gradients.norm().expect("gradients")).1[0];
    for parameter in named_parameters(&lesson.student, Layout::PhiMamba) {
        let key = format!("{prefix}.grad.{}", parameter.name);
        let gradient = gradients.take(parameter.id).map(values);
        if lesson.goldens.has(&key) {
            let (shape, expected) = lesson.goldens.f64(&key);
            squares += expected.iter().map(|v| v * v).sum::<f64>();
            let gradient = gradient.unwrap_or_else(|| panic!("{key}: no gradient"));
            assert_eq!(shape, parameter.shape, "{key}");
            let expected = (vec![expected.len()], expected);
            assert_close(&key, gradient, expected, tolerance);
        } else if let Some((_, values)) = gradient {
            assert!(values.iter().all(|v| *v == 0.0), "{key}: not zero");
        }
    }
    let norm = (one(norm), one(squares.sqrt()));
    assert_close(&format!("{prefix}: the norm"), norm.0, norm.1, tolerance);
}

fn stages<B: TrainBackend>(tolerance: f64) {
    let mixers = config(&[]);
    stage::<B>(&mixers, 1, "stage1.loss", "stage1", tolerance);
    stage::<B>(&mixers, 2, "stage2.mixer_loss", "stage2.mixer", tolerance);
    let blocks = config(&["stage2.target=block", "stage2.train=all"]);
    stage::<B>(&blocks, 2, "stage2.block_loss", "stage2.block", tolerance);
    stage::<B>(&mixers, 3, "stage3.loss", "stage3", tolerance);
    let twice = config(&["stage3.recompute=true"]);
    stage::<B>(&twice, 3, "stage3.loss", "stage3", tolerance);
}

#[test]
fn stages_exact() {
    stages::<Autodiff<Exact>>(EXACT);
}

#[test]
fn stages_flex() {
    stages::<Autodiff<Fast>>(FAST);
}

/// A share of the loss is the cross-entropy of the next tokens, each in its place. The published code
/// has no hard labels, so this is held against the definition.
#[test]
fn hard_labels() {
    type B = Autodiff<Exact>;
    let mut lesson = Lesson::<B>::open();
    let [b, l] = lesson.batch.ids.dims();
    let labels: Vec<i64> = (0..(b * l) as i64).map(|i| 7 * i % 50).collect();
    let device = Default::default();
    lesson.batch.labels = Tensor::from_data(TensorData::new(labels.clone(), [b, l]), &device);
    let weights = DistillationWeights {
        temperature: 2.0,
        hard: 0.3,
    };
    let (found, _) = lesson.pass(Objective::Predictions {
        weights,
        recompute: false,
    });

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
fn parameters<B: Backend>(model: &PhiMamba<B>) -> Vec<(String, Values)> {
    struct Collect(Vec<Values>);
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            self.0.push(values(parameter.val()));
        }
    }
    let mut collect = Collect(vec![]);
    model.visit(&mut collect);
    let names = named_parameters(model, Layout::PhiMamba);
    let names = names.into_iter().map(|parameter| parameter.name);
    names.zip(collect.0).collect()
}

/// Five steps at a constant rate, as recorded.
fn five_steps<B: TrainBackend>(tolerance: f64) {
    let config = config(&[]);
    let mut lesson = Lesson::<B>::open();
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
        let (loss, gradients) = lesson.pass(Objective::of(&config, 3));
        let norm = gradients.norm().expect("gradients");
        losses.push(loss);
        norms.push(values(norm.clone()).1[0]);
        let scale = optimizer.scale(norm.clone(), norm, 1);
        lesson.student = optimizer.step(lesson.student, gradients, scale, 1e-3);
    }
    let Lesson {
        goldens, student, ..
    } = &lesson;
    for (key, found) in [("adamw_losses", losses), ("adamw_grad_norms", norms)] {
        let key = format!("stage3.{key}");
        assert_close(&key, (vec![5], found), goldens.f64(&key), tolerance);
    }
    let mut compared = 0;
    for (name, values) in parameters(student) {
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
    five_steps::<Autodiff<Exact>>(EXACT);
}

#[test]
fn five_steps_flex() {
    five_steps::<Autodiff<Fast>>(FAST);
}
