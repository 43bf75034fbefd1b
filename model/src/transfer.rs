//! What a student takes over from its teacher before distillation begins.

use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::block::Mixer;
use crate::layers::{LayerNorm, Linear};
use crate::lm::CausalLm;

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
    #[error("`{name}` is {student:?} in the student and {teacher:?} in the teacher")]
    Shape {
        /// The student's name for it.
        name: String,
        /// Its shape there.
        student: Vec<usize>,
        /// Its shape in the teacher.
        teacher: Vec<usize>,
    },
    /// One has a bias that the other has not.
    #[error("`{name}` exists in only one of student and teacher")]
    Bias {
        /// The student's name for it.
        name: String,
    },
}

/// Copies the embedding, the MLPs, the norms, the head, and the attention of the layers that keep
/// it, from `teacher` to `student`; the student's mixers stay as they are.
///
/// Where the student's vocabulary is padded and the teacher's is not, the teacher's is padded as by
/// [`pad_vocabulary`]. Nothing is changed if anything does not fit. Parameters keep their ids, so
/// an optimiser that already knows them still does; copies are in the teacher's dtype.
///
/// # Errors
/// [`TransferError`] names the first parameter that does not fit.
pub fn transfer_weights<B: Backend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), TransferError> {
    let mut taught = student.clone();
    let teacher = if teacher.vocab_size() < taught.vocab_size() {
        pad_vocabulary(teacher.clone(), taught.vocab_size())
    } else {
        teacher.clone()
    };
    let (to, from) = (&mut taught.backbone, teacher.backbone);
    if to.layers.len() != from.layers.len() {
        return Err(TransferError::Layers {
            student: to.layers.len(),
            teacher: from.layers.len(),
        });
    }
    copy(
        "backbone.embedding.weight",
        &mut to.embedding.weight,
        &from.embedding.weight,
    )?;
    copy_norm(
        "backbone.final_layernorm",
        &mut to.final_layernorm,
        &from.final_layernorm,
    )?;
    copy_linear("lm_head", &mut taught.lm_head, &teacher.lm_head)?;
    for (i, (to, from)) in to.layers.iter_mut().zip(&from.layers).enumerate() {
        let name = |part: &str| format!("backbone.layers.{i}.{part}");
        copy_norm(
            &name("input_layernorm"),
            &mut to.input_layernorm,
            &from.input_layernorm,
        )?;
        copy_linear(&name("mlp.fc1"), &mut to.mlp.fc1, &from.mlp.fc1)?;
        copy_linear(&name("mlp.fc2"), &mut to.mlp.fc2, &from.mlp.fc2)?;
        if let (Mixer::Attention(to), Mixer::Attention(from)) = (&mut to.mixer, &from.mixer) {
            for (part, to, from) in [
                ("q_proj", &mut to.q_proj, &from.q_proj),
                ("k_proj", &mut to.k_proj, &from.k_proj),
                ("v_proj", &mut to.v_proj, &from.v_proj),
                ("dense", &mut to.dense, &from.dense),
            ] {
                copy_linear(&name(&format!("mixer.self_attn.{part}")), to, from)?;
            }
        }
    }
    *student = taught;
    Ok(())
}

/// `model` with rows added to the embedding and the head until it knows `vocab_size` ids, so that
/// its logits have the shape of a padded student's. The added ids have zero vectors and a
/// probability of zero. A model that knows as many already is returned as it is.
pub fn pad_vocabulary<B: Backend>(mut model: CausalLm<B>, vocab_size: usize) -> CausalLm<B> {
    let rows = vocab_size.saturating_sub(model.vocab_size());
    if rows == 0 {
        return model;
    }
    model.backbone.embedding.weight = padded(&model.backbone.embedding.weight, rows, 0.0);
    model.lm_head.weight = padded(&model.lm_head.weight, rows, 0.0);
    model.lm_head.bias = model
        .lm_head
        .bias
        .as_ref()
        .map(|bias| padded(bias, rows, NEVER));
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

fn copy<B: Backend, const D: usize>(
    name: &str,
    to: &mut Param<Tensor<B, D>>,
    from: &Param<Tensor<B, D>>,
) -> Result<(), TransferError> {
    let (student, teacher) = (to.lazy_shape(), from.lazy_shape());
    if student != teacher {
        return Err(TransferError::Shape {
            name: name.into(),
            student: student.to_vec(),
            teacher: teacher.to_vec(),
        });
    }
    let value = from.val().detach();
    *to = to.clone().transform_for_load(value, to.id);
    Ok(())
}

fn copy_linear<B: Backend>(
    name: &str,
    to: &mut Linear<B>,
    from: &Linear<B>,
) -> Result<(), TransferError> {
    copy(&format!("{name}.weight"), &mut to.weight, &from.weight)?;
    let name = format!("{name}.bias");
    match (&mut to.bias, &from.bias) {
        (Some(to), Some(from)) => copy(&name, to, from),
        (None, None) => Ok(()),
        _ => Err(TransferError::Bias { name }),
    }
}

fn copy_norm<B: Backend>(
    name: &str,
    to: &mut LayerNorm<B>,
    from: &LayerNorm<B>,
) -> Result<(), TransferError> {
    copy(&format!("{name}.weight"), &mut to.weight, &from.weight)?;
    copy(&format!("{name}.bias"), &mut to.bias, &from.bias)
}
