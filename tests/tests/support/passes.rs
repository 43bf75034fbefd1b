//! The training loop's passes on the recorded networks.

use burn::tensor::DType;
use kernels::TrainBackend;
use model::{Family, ModelConfig, Phi, PhiMamba, named_parameters};
use tests::{Goldens, assert_close, goldens_dir};
use train::config::{Config, Source};
use train::gradients::Gradients;
use train::stages::{Kind, StageStep, TokenBatch, in_dtype, train_parts};

use tests::networks::mohawk::{RECORDED, Recorded};
use tests::networks::{ids, values};

/// Both networks, and the recorded ids as a batch.
pub struct Lesson<B: TrainBackend> {
    pub goldens: Goldens,
    pub teacher: Phi<B::InnerBackend>,
    pub student: PhiMamba<B>,
    pub student_config: ModelConfig,
    pub batch: TokenBatch<B>,
}

impl<B: TrainBackend> Lesson<B> {
    pub fn open(recorded: Recorded) -> Self {
        let device = Default::default();
        let goldens = recorded.goldens();
        let folder = goldens_dir().join(recorded.teacher);
        let (_, teacher) = model::load_any(folder, &device).expect("a teacher");
        let (student_config, student) = recorded.student();
        let ids = ids(&goldens, "input_ids", &device);
        // The labels are read with hard labels only, which the published code has not.
        let labels = ids.clone();
        let batch = TokenBatch {
            ids,
            labels,
            has_ends: false,
            documents: None,
        };
        Self {
            goldens,
            teacher,
            student,
            student_config,
            batch,
        }
    }

    /// The loss of one pass and its gradients, at the beginning of a stage.
    pub fn pass(&self, kind: &Kind) -> (f64, Gradients<B::InnerBackend>) {
        let first = StageStep { number: 0, of: 2 };
        self.pass_at(kind, first)
    }

    /// The same in any step.
    pub fn pass_at(&self, kind: &Kind, at: StageStep) -> (f64, Gradients<B::InnerBackend>) {
        let mut gradients = Gradients::default();
        let (student, batch) = (&self.student, self.batch.clone());
        let loss = kind.pass(&student.into(), &self.teacher, batch, at, &mut gradients);
        (values(loss).1[0], gradients)
    }
}

pub fn config(overrides: &[&str]) -> Config {
    let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
    Config::load(Source::Preset("tiny"), &overrides).expect("a configuration")
}

/// The pass of the stage called `name`: its loss is the sum of those recorded under `loss`, its gradients are
/// those under `prefix`, and there are no others.
fn stage<B: TrainBackend>(
    recorded: Recorded,
    config: &Config,
    name: &str,
    loss: &str,
    prefix: &str,
    tolerance: f64,
) {
    let mut lesson = Lesson::<B>::open(recorded);
    let stage = config.stage(name).expect("a stage");
    lesson.student = train_parts(lesson.student, &stage.lr);
    let (found, mut gradients) = lesson.pass(&stage.kind);
    let expected: f64 = lesson.goldens.f64(loss).1.iter().sum();
    let one = |value| (vec![1], vec![value]);
    assert_close(loss, one(found), one(expected), tolerance);

    let mut squares = 0.0;
    let norm = values(gradients.norm().expect("gradients")).1[0];
    for parameter in named_parameters(&lesson.student, lesson.student_config.layout()) {
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

pub fn stages<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    // Whether the norms before the mixers trained too when the vectors were recorded.
    let norms = (recorded.goldens()).has("stage1.grad.backbone.layers.0.input_layernorm.weight");
    let mixers = if norms {
        config(&[
            "stage1.lr={ mixer = 1e-3, norm = 1e-3 }",
            "stage2.lr={ mixer = 1e-3, norm = 1e-3 }",
        ])
    } else {
        config(&[])
    };
    let check = |config: &Config, name: &str, loss: &str, prefix: &str| {
        stage::<B>(recorded, config, name, loss, prefix, tolerance);
    };
    check(&mixers, "stage1", "stage1.loss", "stage1");
    check(&mixers, "stage2", "stage2.mixer_loss", "stage2.mixer");
    let blocks = config(&[
        "stage2.target=block",
        "stage2.lr={ mixer = 1e-3, mlp = 1e-3, norm = 1e-3 }",
    ]);
    check(&blocks, "stage2", "stage2.block_loss", "stage2.block");
    check(&mixers, "stage3", "stage3.loss", "stage3");
    let twice = config(&["stage3.recompute=true"]);
    check(&twice, "stage3", "stage3.loss", "stage3");
}

/// Stage 2 with three blocks as one, where its loss was recorded: of students with three layers.
pub fn three_blocks_as_one<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    let lesson = Lesson::<B>::open(recorded);
    let key = "stage2.gap3_loss";
    if !lesson.goldens.has(key) {
        return;
    }
    assert_eq!(lesson.student.backbone.layers.len(), 3);
    let config = config(&["stage2.target=block", "stage2.every=3"]);
    let (found, _) = lesson.pass(&config.stage("stage2").expect("a stage").kind);
    let found = (vec![1], vec![found]);
    assert_close(key, found, lesson.goldens.f64(key), tolerance);
}

/// Gradients of the passes in bfloat16 against the recorded ones: how large what differs is, of all of
/// them together and of each, as a share of what is recorded.
///
/// A number has 8 bits there, so that each op rounds by up to 0.4%, and a dozen of them lie one behind the
/// other: 1.4% if they add up like chance. Of a parameter with little gradient that may be a larger share.
pub fn stages_in_bf16<B: TrainBackend>(of_all: f64, of_each: f64) {
    let config = config(&["stage3.recompute=true"]);
    for (name, prefix) in [
        ("stage1", "stage1"),
        ("stage2", "stage2.mixer"),
        ("stage3", "stage3"),
    ] {
        let mut lesson = Lesson::<B>::open(RECORDED[0]);
        lesson.teacher = lesson.teacher.cast(DType::BF16);
        let stage = config.stage(name).expect("a stage");
        let student = train_parts(lesson.student, &stage.lr);
        lesson.student = in_dtype(&student, DType::BF16);
        let (_, mut gradients) = lesson.pass(&stage.kind);
        let (mut wrong, mut right, mut worst) = (0.0, 0.0, (0.0, String::new()));
        let mut each = vec![];
        for parameter in named_parameters(&lesson.student, lesson.student_config.layout()) {
            let key = format!("{prefix}.grad.{}", parameter.name);
            if !lesson.goldens.has(&key) {
                continue;
            }
            let (_, expected) = lesson.goldens.f64(&key);
            let (_, found) = values(gradients.take(parameter.id).expect("a gradient"));
            let squares =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
            let differing = squares(&mut expected.iter().zip(&found).map(|(a, b)| a - b));
            let norm = squares(&mut expected.iter().copied());
            wrong += differing;
            right += norm;
            each.push((differing, norm, key));
        }
        for (differing, norm, key) in each {
            // A thousandth of all gradients is noise to the rest.
            let share = (differing / norm.max(1e-6 * right)).sqrt();
            if share > worst.0 {
                worst = (share, key);
            }
        }
        let all = (wrong / right).sqrt();
        println!(
            "{name} in bf16: {all:.4} of all gradients, at most {:.4} of {}",
            worst.0, worst.1
        );
        assert!(all < of_all, "{name}: {all} of all gradients");
        assert!(worst.0 < of_each, "{}: {}", worst.1, worst.0);
    }
}
