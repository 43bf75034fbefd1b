//! The recorded losses of the three stages and their gradients, whatever the backend.

use super::*;
use crate::{Goldens, assert_close, goldens_dir};
use burn::tensor::Tensor;
use kernels::TrainBackend;
use model::mohawk::{
    DistillationWeights, distillation_loss, hidden_state_loss, matrix_orientation_loss,
};
use model::{Block, Family, ModelConfig, PhiMamba, Taps, named_parameters};

/// What a student learns from its teacher: folders of the goldens.
#[derive(Clone, Copy)]
pub struct Recorded {
    /// That of the vectors.
    pub name: &'static str,
    /// That of the student.
    pub student: &'static str,
    /// That of the teacher.
    pub teacher: &'static str,
}

/// All that were recorded.
pub const RECORDED: [Recorded; 2] = [
    Recorded {
        name: "mohawk-tiny",
        student: "student-tiny",
        teacher: "teacher-tiny",
    },
    Recorded {
        name: "mohawk-llama",
        student: "student-llama",
        teacher: "teacher-llama",
    },
];

impl Recorded {
    /// The vectors.
    pub fn goldens(self) -> Goldens {
        Goldens::open(&format!("{}/expected", self.name))
    }

    /// The student and its configuration.
    pub fn student<B: TrainBackend>(self) -> (ModelConfig, PhiMamba<B>) {
        let folder = goldens_dir().join(self.student);
        model::load_any(folder, &Default::default()).expect("a student")
    }

    /// What the teacher computes on the recorded ids: everything, on the backend without gradients.
    fn taught<B: TrainBackend>(self, goldens: &Goldens) -> model::Outputs<B::InnerBackend> {
        let folder = goldens_dir().join(self.teacher);
        let device = Default::default();
        let (_, teacher) = model::load_any::<B::InnerBackend>(folder, &device).expect("a teacher");
        teacher.forward(ids(goldens, "input_ids", &device), Taps::all())
    }
}

/// With everything but the mixers frozen, and the norms before them where `goldens` have no gradient of these, as
/// the vectors of the losses on mixers were recorded.
fn mixers_only<B: TrainBackend>(goldens: &Goldens, mut student: PhiMamba<B>) -> PhiMamba<B> {
    let norms = goldens.has("stage1.grad.backbone.layers.0.input_layernorm.weight");
    for layer in &mut student.backbone.layers {
        if !norms {
            layer.input_layernorm = layer.input_layernorm.clone().no_grad();
        }
        layer.mlp = layer.mlp.clone().no_grad();
    }
    student
}

/// Asserts every gradient of `loss` under `prefix`: those in the file equal, all others zero.
fn assert_gradients<B: TrainBackend>(
    goldens: &Goldens,
    prefix: &str,
    (config, student): &(ModelConfig, PhiMamba<B>),
    loss: Tensor<B, 1>,
    tolerance: f64,
) {
    let found = gradients::<B>(student, &loss.backward());
    let mut compared = 0;
    for parameter in named_parameters(student, config.layout()) {
        let gradient = found.iter().find(|(id, _)| *id == parameter.id);
        let key = format!("{prefix}.grad.{}", parameter.name);
        if goldens.has(&key) {
            let (_, gradient) = gradient.unwrap_or_else(|| panic!("{key}: no gradient"));
            assert_close(&key, gradient.clone(), goldens.f64(&key), tolerance);
            compared += 1;
        } else if let Some((_, (_, values))) = gradient {
            assert!(
                values.iter().all(|v| *v == 0.0),
                "{key}: the gradient should be zero"
            );
        }
    }
    let recorded = goldens.keys().into_iter();
    let recorded = recorded.filter(|key| key.starts_with(&format!("{prefix}.grad.")));
    assert_eq!(compared, recorded.count(), "{prefix}: gradients compared");
    assert!(compared > 0);
}

/// One of the layer-wise losses: `loss` of each layer with its number and the teacher's hidden
/// state before it.
fn layerwise<B: TrainBackend>(
    recorded: Recorded,
    loss_key: &str,
    prefix: &str,
    tolerance: f64,
    loss: impl Fn(&Block<B>, usize, Tensor<B, 3>, &model::Outputs<B::InnerBackend>) -> Tensor<B, 1>,
) {
    let goldens = recorded.goldens();
    let taught = recorded.taught::<B>(&goldens);
    let mut student = recorded.student::<B>();
    if prefix != "stage2.block" {
        student.1 = mixers_only(&goldens, student.1);
    }
    let losses = student
        .1
        .backbone
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let input = Tensor::from_inner(taught.hidden_states[i].clone());
            loss(layer, i, input, &taught)
        });
    let losses: Tensor<B, 1> = Tensor::cat(losses.collect(), 0);
    assert_golden(recorded.name, &goldens, loss_key, losses.clone(), tolerance);
    assert_gradients(&goldens, prefix, &student, losses.sum(), tolerance);
}

/// Stage 1: the matrices.
pub fn stage1<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    layerwise::<B>(
        recorded,
        "stage1.loss",
        "stage1",
        tolerance,
        |layer, i, x, taught| {
            let attention = Tensor::from_inner(taught.mixing_matrices[i].clone());
            matrix_orientation_loss(layer.mixing_matrix(x), attention)
        },
    );
}

/// Stage 2: the mixers' outputs, and the blocks'.
pub fn stage2<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    layerwise::<B>(
        recorded,
        "stage2.mixer_loss",
        "stage2.mixer",
        tolerance,
        |layer, i, x, taught| {
            let target = Tensor::from_inner(taught.mixer_outputs[i].clone());
            hidden_state_loss(layer.mixer_output(x), target)
        },
    );
    layerwise::<B>(
        recorded,
        "stage2.block_loss",
        "stage2.block",
        tolerance,
        |layer, i, x, taught| {
            let target = Tensor::from_inner(taught.hidden_states[i + 1].clone());
            hidden_state_loss(layer.forward(x), target)
        },
    );
}

/// Stage 2 over several blocks in a row, each reading the student's own output of the one before: its value, where it
/// was recorded.
pub fn gap<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    let goldens = recorded.goldens();
    let key = "stage2.gap3_loss";
    if !goldens.has(key) {
        return;
    }
    let taught = recorded.taught::<B>(&goldens);
    let (_, student) = recorded.student::<B>();
    let x = Tensor::from_inner(taught.hidden_states[0].clone());
    let blocks = student.backbone.layers[..3].iter();
    let output = blocks.fold(x, |x, block| block.forward(x));
    let target = Tensor::from_inner(taught.hidden_states[3].clone());
    let loss = hidden_state_loss(output, target);
    assert_golden(recorded.name, &goldens, key, loss, tolerance);
}

/// Stage 3: the predictions.
pub fn stage3<B: TrainBackend>(recorded: Recorded, tolerance: f64) {
    let goldens = recorded.goldens();
    let student = recorded.student::<B>();
    let ids = ids(&goldens, "input_ids", &Default::default());
    let logits = student.1.logits(student.1.features(ids));
    let [b, l, v] = logits.dims();
    let target = recorded.taught::<B>(&goldens).logits.expect("asked for");
    let loss = distillation_loss(
        logits.reshape([b * l, v]),
        Tensor::from_inner(target.reshape([b * l, v])),
        None,
        DistillationWeights::default(),
    );
    assert_golden(
        recorded.name,
        &goldens,
        "stage3.loss",
        loss.clone(),
        tolerance,
    );
    assert_gradients(&goldens, "stage3", &student, loss, tolerance);
}
