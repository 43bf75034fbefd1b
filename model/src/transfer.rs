//! Copies parameters from a teacher to its student before distillation begins.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};

use crate::arch::Layout;
use crate::lm::CausalLm;
use crate::parameters::{NamedParameter, named_parameters};

/// Bias of the head for ids that only pad the vocabulary: their probability is zero in any dtype.
const NEVER: f64 = -1e4;

/// Why a teacher's weights do not fit a student.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TransferError {
    /// Different numbers of layers.
    #[error("the student has {student} layers and the teacher {teacher}")]
    Layers {
        /// The student's.
        student: usize,
        /// The teacher's.
        teacher: usize,
    },
    /// A parameter differs in shape.
    #[error("`{path}` is {student:?} in the student and {teacher:?} in the teacher")]
    Shape {
        /// Its path in both.
        path: String,
        /// Its shape in the student.
        student: Vec<usize>,
        /// Its shape in the teacher.
        teacher: Vec<usize>,
    },
    /// Only one of them has a parameter of a part that both have, such as a bias.
    #[error("`{path}` exists in only one of student and teacher")]
    Alone {
        /// Its path there.
        path: String,
    },
}

/// Copies every parameter that both networks have, by its path, from `teacher` to `student`: the embedding, the
/// MLPs, the norms, the head, and the mixers of the layers where both have the same kind. The student's other
/// mixers stay as they are.
///
/// If the student's vocabulary is padded and the teacher's is not, the teacher's is padded first, as by
/// [`pad_vocabulary`]. If both heads are tied to the embedding, it is padded only by zero vectors, and the student has
/// to learn not to predict the padding ids. If anything does not fit, nothing is changed. Parameters keep their ids, so
/// the state of an existing optimiser stays valid. The copies have the teacher's dtype.
///
/// # Errors
/// [`TransferError`] names a parameter that does not fit.
pub fn transfer_weights<B: Backend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), TransferError> {
    let layers = [&*student, teacher].map(|network| network.backbone.layers.len());
    if layers[0] != layers[1] {
        return Err(TransferError::Layers {
            student: layers[0],
            teacher: layers[1],
        });
    }
    let (tied, rows) = (student.lm_head.is_none(), student.vocab_size());
    let padded = if tied && teacher.lm_head.is_none() {
        // The student's head is tied, so it has no place for a separate head.
        pad_embedding(teacher.clone(), rows)
    } else {
        pad_vocabulary(teacher.clone(), rows)
    };
    let mut from = Parameters::of(&padded);
    let to = named_parameters(student, Layout::default());
    let ours: HashSet<&str> = to.iter().map(|parameter| &*parameter.path).collect();
    let theirs: HashSet<&str> = from.found.keys().map(|path| &**path).collect();
    let is_alone = |path: &&str, others: &HashSet<&str>| {
        !others.contains(path) && !is_of_other_mixer(path, others)
    };
    let mut alone = ours.iter().filter(|path| is_alone(path, &theirs));
    let mut missing = theirs.iter().filter(|path| is_alone(path, &ours));
    if let Some(path) = alone.next().or_else(|| missing.next()) {
        let path = path.to_string();
        return Err(TransferError::Alone { path });
    }
    for NamedParameter { path, shape, .. } in &to {
        if let Some((_, teacher)) = from.found.get(path)
            && teacher != shape
        {
            return Err(TransferError::Shape {
                path: path.clone(),
                student: shape.clone(),
                teacher: teacher.clone(),
            });
        }
    }
    *student = student.clone().map(&mut from);
    Ok(())
}

/// Whether `path` leads into a mixer, and the other network, with these paths, has one of another kind there.
fn is_of_other_mixer(path: &str, others: &HashSet<&str>) -> bool {
    const MIXER: &str = ".mixer.";
    let Some(start) = path.find(MIXER) else {
        return false;
    };
    let kind = start + MIXER.len();
    let end = path[kind..].find('.').map_or(path.len(), |n| kind + n + 1);
    !others.iter().any(|other| other.starts_with(&path[..end]))
}

/// The parameters of a teacher by their paths: visiting it fills this, mapping a student copies them.
struct Parameters<B: Backend> {
    path: Vec<String>,
    found: HashMap<String, (TensorPrimitive<B>, Vec<usize>)>,
}

impl<B: Backend> Parameters<B> {
    fn of(teacher: &CausalLm<B>) -> Self {
        let mut parameters = Self {
            path: Vec::new(),
            found: HashMap::new(),
        };
        teacher.visit(&mut parameters);
        parameters
    }
}

impl<B: Backend> ModuleVisitor<B> for Parameters<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let value = parameter.val().detach();
        let shape = value.dims().to_vec();
        let value = value.into_primitive();
        self.found.insert(self.path.join("."), (value, shape));
    }
}

impl<B: Backend> ModuleMapper<B> for Parameters<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.found.remove(&self.path.join(".")) {
            Some((value, _)) => {
                let id = parameter.id;
                parameter.transform_for_load(Tensor::from_primitive(value), id)
            }
            None => parameter,
        }
    }
}

/// Adds rows to the embedding and the head of `model` until its vocabulary has `vocab_size` ids, so that its logits
/// have the shape of a padded student's. The added ids have zero vectors and a probability of zero. For this, a head
/// without a bias gets a bias, and a tied head becomes separate. A model that already has as many ids is returned
/// unchanged.
pub fn pad_vocabulary<B: Backend>(mut model: CausalLm<B>, vocab_size: usize) -> CausalLm<B> {
    let rows = vocab_size.saturating_sub(model.vocab_size());
    if rows == 0 {
        return model;
    }
    let mut head = model.head().into_owned();
    let bias = head.bias.take().unwrap_or_else(|| {
        let weight = head.weight.val();
        let zeros = Tensor::zeros([model.vocab_size()], (&weight.device(), weight.dtype()));
        Param::initialized(ParamId::new(), zeros)
    });
    head.bias = Some(padded(&bias, rows, NEVER));
    head.weight = padded(&head.weight, rows, 0.0);
    model.lm_head = Some(head);
    model.backbone.embedding.weight = padded(&model.backbone.embedding.weight, rows, 0.0);
    model
}

/// `model` with zero vectors after the last of its embedding, up to `vocab_size`.
fn pad_embedding<B: Backend>(mut model: CausalLm<B>, vocab_size: usize) -> CausalLm<B> {
    let rows = vocab_size.saturating_sub(model.vocab_size());
    if rows > 0 {
        model.backbone.embedding.weight = padded(&model.backbone.embedding.weight, rows, 0.0);
    }
    model
}

/// `parameter` with `rows` rows of `value` after its last.
fn padded<B: Backend, const D: usize>(
    parameter: &Param<Tensor<B, D>>,
    rows: usize,
    value: f64,
) -> Param<Tensor<B, D>> {
    let x = parameter.val();
    let require_grad = x.is_require_grad();
    let mut shape = x.dims();
    shape[0] = rows;
    let added = Tensor::full(shape, value, (&x.device(), x.dtype()));
    let all = Tensor::cat(vec![x.detach(), added], 0);
    Param::initialized(parameter.id, all.detach().set_require_grad(require_grad))
}
