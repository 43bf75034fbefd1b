//! The configuration of a hybrid that keeps some heads beside its state-space mixers.

use model::mixers::beside_attention::HeadsStudent;
use model::mixers::discrete_mamba2::Mamba2Student;
use model::{Activation, AttentionConfig, Family, Joined, MixerConfig, ModelConfig, StudentMixer};

use super::changes::Unit;
use crate::config::Config;
use crate::error::TrainError;
use crate::run::student_config;

/// The start that gives the kept heads the teacher's weights, and fits the mixers, layer by layer on the student's own
/// stream, to the output of the other heads. It starts 34 times nearer to the teacher than `calibrated`
/// (docs/results.md).
const START: &str = "fitted";
/// The start if B and C go through a feature map, which `fitted` does not support.
const START_BEHIND_A_MAP: &str = "calibrated";

/// The heads of `units` as a configuration names them, in the order of the network.
pub(super) fn sorted(units: &[&Unit]) -> Vec<String> {
    let heads = units.iter().flat_map(|unit| {
        let heads = unit.heads.iter();
        heads.map(move |head| (unit.layer, *head))
    });
    let mut all: Vec<(usize, usize)> = heads.collect();
    all.sort_unstable();
    let names = all.iter().map(|(layer, head)| format!("{layer}/{head}"));
    names.collect()
}

/// `base` with a student that keeps these `heads` of the teacher and starts fitted. Its mixers have the sizes that this
/// start needs, and otherwise the options of the mixers in `base`.
///
/// # Errors
/// [`TrainError::Student`] if the teacher's family has no such hybrid; [`TrainError::Mismatch`] without attention.
pub(super) fn config(
    base: &Config,
    of_teacher: &ModelConfig,
    heads: &[String],
) -> Result<Config, TrainError> {
    let network = of_teacher.network();
    let mut attentions = network.mixers.iter().filter_map(|mixer| match mixer {
        MixerConfig::Attention(attention) => Some(attention),
        _ => None,
    });
    let Some(attention) = attentions.next() else {
        let none = "no layer of the teacher has attention";
        return Err(TrainError::Mismatch(none.into()));
    };
    let own = base.student.mixer.mamba().cloned().unwrap_or_default();
    let is_mapped = !own.feature_map.is_identity();
    let mut config = base.clone();
    config.name = format!("{}-heads-{}", base.name, heads.len());
    config.student.mixer = StudentMixer::Mamba2Heads(HeadsStudent {
        mamba: fitting(own, attention, network.d_model),
        heads: heads.to_vec(),
        joined: Joined::Sum,
    });
    config.student.attention_layers = vec![];
    config.student.init = if is_mapped {
        START_BEHIND_A_MAP.into()
    } else {
        START.into()
    };
    config.validate()?;
    student_config(&config, of_teacher)?;
    Ok(config)
}

/// `own` with the sizes that a start from `attention` needs.
fn fitting(own: Mamba2Student, attention: &AttentionConfig, d_model: usize) -> Mamba2Student {
    let (h, p) = (attention.n_heads, attention.head_dim(d_model));
    Mamba2Student {
        d_state: own.d_state.max(p),
        n_qk_heads: h,
        n_v_heads: h,
        head_dim: if h * p == d_model { 0 } else { p },
        expand: 1,
        conv_bias: true,
        activation: Activation::Identity,
        bias: own.bias || attention.dense_bias,
        bc_norm: attention.qk_norm.is_some(),
        ..own
    }
}
