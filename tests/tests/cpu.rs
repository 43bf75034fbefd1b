//! What the training loop computes on the CPU, against the published code's: the gradients of each stage's
//! pass, and five AdamW steps of stage 3, of a Phi's student and of a Llama's. And the bundled teacher's perplexity.
//!
//! The tests of `model` compare the losses that the networks offer; here it is the passes of `train`, which
//! go layer by layer, its sums of gradients, and its optimizer. Beside that, its passes over rows of several documents.

#[path = "support/documents.rs"]
mod documents;
mod support;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use model::mohawk::hidden_state_loss;
use model::{Family, ModelConfig, PhiMamba, named_parameters};
use support::passes::{Lesson, config, stages, three_blocks_as_one};
use support::perplexity::{perplexity_is_exact, perplexity_is_the_recorded};
use tests::networks::mohawk::{RECORDED, Recorded};
use tests::networks::*;
use tests::{Values, assert_close};
use train::config::{Decay, Optimizer};
use train::gradients::Gradients;
use train::optimizer::AdamW;
use train::stages::hidden_states::{HiddenStates, Target};
use train::stages::predictions::{Loss, Predictions};
use train::stages::{Kind, StageStep};

#[test]
fn perplexity_flex() {
    perplexity_is_exact::<Fast>();
    perplexity_is_the_recorded::<Fast>();
}

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

#[test]
fn three_blocks_as_one_exact() {
    for recorded in RECORDED {
        three_blocks_as_one::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn three_blocks_as_one_flex() {
    for recorded in RECORDED {
        three_blocks_as_one::<Autodiff<Fast>>(recorded, FAST);
    }
}

/// The loss of stage 2 and all gradients, group by group: each on a graph of its own, from a constant.
fn by_groups<B: TrainBackend>(
    lesson: &Lesson<B>,
    stage: &HiddenStates,
    sequential: bool,
) -> (f64, Gradients<B::InnerBackend>) {
    let (student, teacher) = (&lesson.student.backbone, &lesson.teacher.backbone);
    let ids = lesson.batch.ids.clone();
    let mut own = student.embedding.valid().forward(ids.clone());
    let mut theirs = teacher.embedding.forward(ids);
    let (mut sum, mut gradients) = (0.0, Gradients::default());
    let groups = student.layers.chunks(stage.every);
    for (students, teachers) in groups.zip(teacher.layers.chunks(stage.every)) {
        let entering = if sequential { &own } else { &theirs };
        let mut x = Tensor::from_inner(entering.clone());
        let mut target = None;
        for (student, teacher) in students.iter().zip(teachers) {
            let taught = teacher.forward_tapped(theirs, false);
            theirs = taught.hidden_state.clone();
            own = student.valid().forward(own);
            (x, target) = match stage.target {
                Target::Mixer => (student.mixer_output(x), Some(taught.mixer_output)),
                Target::Block => (student.forward(x), Some(taught.hidden_state)),
            };
        }
        let target = Tensor::from_inner(target.expect("a layer in each group"));
        let loss = hidden_state_loss(x, target);
        let reached = loss.backward();
        for student in students {
            gradients.add::<B, _>(student, &reached);
        }
        sum += values(loss).1[0];
    }
    (sum, gradients)
}

/// Each layer learns from its own loss alone, of groups of layers and on the student's own hidden states too.
#[test]
fn hidden_states_are_compared_group_by_group() {
    type B = Autodiff<Exact>;
    for recorded in RECORDED {
        let lesson = Lesson::<B>::open(recorded);
        for (target, every, sequential) in [
            (Target::Mixer, 1, 0.0),
            (Target::Mixer, 1, 0.5),
            (Target::Block, 1, 0.5),
            (Target::Block, 2, 0.0),
            (Target::Block, 2, 0.5),
        ] {
            let stage = HiddenStates {
                target,
                every,
                sequential,
                ..HiddenStates::default()
            };
            for number in 0..2 {
                let name = format!("{}, {stage:?}, step {number}", recorded.name);
                let own = sequential > 0.0 && number == 1;
                let (expected, mut slopes) = by_groups(&lesson, &stage, own);
                let at = StageStep { number, of: 2 };
                let (found, mut gradients) = lesson.pass_at(&Kind::HiddenStates(stage.clone()), at);
                let one = |value| (vec![1], vec![value]);
                assert_close(&name, one(found), one(expected), 1e-12);
                let mut compared = 0;
                for parameter in named_parameters(&lesson.student, lesson.student_config.layout()) {
                    let name = format!("{name}: {}", parameter.name);
                    let found = gradients.take(parameter.id).map(values);
                    let expected = slopes.take(parameter.id).map(values);
                    assert_eq!(found.is_some(), expected.is_some(), "{name}");
                    if let (Some(found), Some(expected)) = (found, expected) {
                        assert_close(&name, found, expected, 1e-10);
                        compared += 1;
                    }
                }
                assert!(compared > 0, "{name}: no gradients");
            }
        }
    }
}

/// Every loss of stage 3 trains the student: against the slope of the loss along the gradient, for a small step.
#[test]
fn losses_fall_along_their_gradients() {
    type B = Autodiff<Exact>;
    for (loss, top_k, hard_weight) in [
        (Loss::ForwardKl, 0, 0.0),
        (Loss::ForwardKl, 4, 0.2),
        (Loss::ReverseKl, 0, 0.0),
        (Loss::ReverseKl, 4, 0.2),
    ] {
        let mut lesson = Lesson::<B>::open(RECORDED[0]);
        let kind = Kind::Predictions(Predictions {
            loss,
            top_k,
            hard_weight,
            temperature: 1.5,
            ..Predictions::default()
        });
        let (before, gradients) = lesson.pass(&kind);
        let square = values(gradients.norm().expect("gradients")).1[0].powi(2);
        // So that the first-order change of the loss is 1e-8 of it.
        let by = 1e-8 * before / square;
        lesson.student = lesson.student.map(&mut Along::<B> { gradients, by: -by });
        let (after, _) = lesson.pass(&kind);
        let slope = (before - after) / by / square;
        assert!((slope - 1.0).abs() < 1e-3, "{loss:?}, top {top_k}: {slope}");
    }
}

/// Moves every parameter along its gradient.
struct Along<B: TrainBackend> {
    gradients: Gradients<B::InnerBackend>,
    by: f64,
}

impl<B: TrainBackend> ModuleMapper<B> for Along<B> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = parameter.consume();
        let value = value.inner();
        let moved = match self.gradients.take(id) {
            Some(gradient) => value.clone() + gradient.reshape(value.dims()) * self.by,
            None => value,
        };
        Param::from_mapped_value(id, Tensor::from_inner(moved).require_grad(), mapper)
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
        ..Default::default()
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
        clip_part: 0.0,
        clip_layer: 0.0,
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
