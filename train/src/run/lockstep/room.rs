//! Estimates whether several runs fit into the memory of a device together.

use burn::tensor::DType;
use kernels::KernelBackend;
use model::{CausalLm, Layout, ModelConfig, NamedParameter, Part, named_parameters};

use crate::config::{Config, StageConfig};
use crate::error::TrainError;
use crate::run::inputs;

/// The share of a device's memory that the estimate may use. The rest is for what is not counted, such as unused memory
/// in the backend's pools, and the driver's own memory.
const PLANNED: f64 = 0.85;

/// The most bytes of logits that exist at the same time: of both networks, their gradient and one more array, of 2 GiB
/// each.
const MOST_LOGITS: u64 = 4 << 31;

/// The memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    bytes: u64,
}

/// Bytes that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// For the teacher, which runs in lockstep share.
    teacher: u64,
    /// For the student between passes, including its gradients.
    student: u64,
    /// For the largest pass. The graph of only one student exists at a time.
    pass: u64,
}

impl Room {
    /// The memory of `device`, if it is known.
    pub(crate) fn of<B: KernelBackend>(device: &B::Device) -> Option<Self> {
        let bytes = B::memory_size(device)?;
        Some(Self { bytes })
    }

    /// Whether runs with these needs fit into it together.
    pub(crate) fn holds(self, needs: &[Need]) -> bool {
        together(needs) as f64 <= PLANNED * self.bytes as f64
    }

    /// A sentence for the log about what these runs need.
    pub(crate) fn said(self, needs: &[Need]) -> String {
        format!(
            "; by arithmetic they take {:.1} GiB of device memory, of {:.1}",
            gib(together(needs)),
            gib(self.bytes)
        )
    }
}

/// The bytes of several runs that share the teacher and the memory of a pass.
fn together(needs: &[Need]) -> u64 {
    let most = |of: fn(&Need) -> u64| needs.iter().map(of).max().unwrap_or_default();
    let students: u64 = needs.iter().map(|need| need.student).sum();
    most(|need| need.teacher) + students + most(|need| need.pass)
}

impl Need {
    /// The needs of a run of `config`. Reads the teacher's configuration, but no weights.
    ///
    /// # Errors
    /// [`TrainError`] that the run itself would have: the teacher is missing, or the student does not fit it.
    pub(crate) fn of<B: KernelBackend>(
        config: &Config,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let folder = inputs::teacher_folder(&config.teacher.model, None)?;
        let teacher = model::load_config(&folder).map_err(TrainError::Teacher)?;
        let student = inputs::student_config(config, &teacher)?;
        let of_teacher = parameters::<B>(&teacher, device);
        let of_student = parameters::<B>(&student, device);
        let vocab_size = student.network().vocab_size;
        Ok(Self::by(config, &of_teacher, &of_student, vocab_size))
    }

    /// The same for networks with these parameters.
    fn by(
        config: &Config,
        of_teacher: &[NamedParameter],
        of_student: &[NamedParameter],
        vocab_size: usize,
    ) -> Self {
        let dtype = config.precision.dtype();
        let (wide, size) = (DType::F32.size() as u64, dtype.size() as u64);
        let trains = |part: Part| {
            let mut stages = config.stages.iter();
            stages.any(|stage| stage.lr.of(part).is_some())
        };
        let all = elements(of_student.iter());
        let trained = elements(
            of_student
                .iter()
                .filter(|parameter| trains(parameter.part())),
        );
        // If the student's own parameters have the dtype of the passes, the passes use them without a copy.
        let working = if size == wide { 0 } else { size };
        // Two moments, the gradient of one pass, and the sum of the gradients of several.
        let of_trained = 2 * wide + size + wide;
        let stages = config.stages.iter();
        let passes = stages.map(|stage| {
            let context = config.context(stage);
            pass(stage, context, of_student, vocab_size, size)
        });
        Self {
            teacher: size * elements(of_teacher.iter()),
            student: (wide + working) * all + of_trained * trained,
            pass: passes.max().unwrap_or_default(),
        }
    }
}

/// So many bytes in GiB.
fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The names and shapes of a network's parameters, without allocating the values.
fn parameters<B: KernelBackend>(config: &ModelConfig, device: &B::Device) -> Vec<NamedParameter> {
    let network = CausalLm::<B>::init(config, 0, device);
    named_parameters(&network, Layout::default())
}

fn elements<'a>(parameters: impl Iterator<Item = &'a NamedParameter>) -> u64 {
    let elements = parameters.map(|parameter| parameter.shape.iter().product::<usize>() as u64);
    elements.sum()
}

/// Bytes of a pass. Inputs and outputs of matrix products are kept for the backward pass, and about as much again of
/// the activations between the products.
fn pass(
    stage: &StageConfig,
    context: usize,
    parameters: &[NamedParameter],
    vocab_size: usize,
    size: u64,
) -> u64 {
    let tokens = (stage.micro_batch * context) as u64;
    let mut widths = 0;
    let mut layers: Vec<&str> = vec![];
    for parameter in parameters {
        let Some((_, in_layer)) = parameter.path.split_once("layers.") else {
            continue;
        };
        let layer = in_layer.split('.').next().unwrap_or_default();
        if layers.last() != Some(&layer) {
            layers.push(layer);
        }
        if let [rows, columns] = parameter.shape[..] {
            widths += (rows + columns) as u64;
        }
    }
    let layers = layers.len().max(1);
    let at_once = stage.kind.layers_at_once(layers).min(layers);
    let graph = 2 * size * tokens * widths * at_once as u64 / layers as u64;
    let logits = if stage.kind.reached().contains(&Part::Head) {
        (4 * size * tokens * vocab_size as u64).min(MOST_LOGITS)
    } else {
        0
    };
    graph + logits
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::config::Source;

    fn parameter(path: &str, shape: &[usize]) -> NamedParameter {
        NamedParameter {
            name: path.to_owned(),
            path: path.to_owned(),
            id: ParamId::new(),
            shape: shape.to_vec(),
        }
    }

    /// Calculated by hand, for two layers with a matrix of 8 x 4 each and an embedding of 10 x 4.
    #[test]
    fn the_needs_of_a_run() {
        let network = [
            parameter("backbone.embedding.weight", &[10, 4]),
            parameter("backbone.layers.0.mlp.up.weight", &[8, 4]),
            parameter("backbone.layers.0.mixer.Attention.q_proj.bias", &[4]),
            parameter("backbone.layers.1.mlp.up.weight", &[8, 4]),
        ];
        let need = |stages: &str, set: &[&str]| {
            let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
            let mut config = Config::load(Source::Preset("tiny"), &set).unwrap();
            config.choose_stages(&[stages.to_owned()]).unwrap();
            Need::by(&config, &network, &network, 10)
        };
        let set = [
            "data.context=16",
            "stage3.micro_batch=2",
            "stage2.micro_batch=2",
        ];
        let all = 40 + 32 + 4 + 32;
        let last = need("stage3", &set);
        assert_eq!(last.teacher, 4 * all);
        // Parameters, moments, gradients of a pass and their sum, in f32.
        assert_eq!(last.student, (4 + 8 + 4 + 4) * all);
        let tokens = 2 * 16;
        assert_eq!(last.pass, 2 * 4 * tokens * 24 + 4 * 4 * tokens * 10);
        // Only what trains has moments and gradients; one layer at a time, and no logits.
        let second = need(
            "stage2",
            &[&set[..], &["stage2.lr={mixer = 1e-3}"]].concat(),
        );
        assert_eq!(second.student, 4 * all + 16 * 4);
        assert_eq!(second.pass, 2 * 4 * tokens * 12);
        let half = need("stage3", &[&set[..], &["precision=bf16"]].concat());
        assert_eq!(half.teacher, 2 * all);
        assert_eq!(half.student, (4 + 2 + 8 + 2 + 4) * all);
        let again = need("stage3", &[&set[..], &["stage3.recompute=true"]].concat());
        assert_eq!(last.pass - again.pass, 2 * 4 * tokens * 12);
    }

    #[test]
    fn runs_share_the_teacher_and_the_pass() {
        let need = |teacher, student, pass| Need {
            teacher,
            student,
            pass,
        };
        let room = Room { bytes: 1000 };
        assert!(room.holds(&[need(100, 150, 300); 3]));
        assert!(!room.holds(&[need(100, 151, 300); 3]));
        assert!(room.holds(&[need(100, 100, 50), need(100, 350, 300)]));
        assert!(!room.holds(&[need(900, 1, 1)]));
    }
}
