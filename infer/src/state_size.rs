//! The memory for the state of one sequence, in bytes, of a model in f32.
//!
//! In bf16 and f16 the recurrent states of Mamba layers stay in f32, while the windows of their convolutions, and
//! attention's keys and values, may need only half of the bytes given here.

use model::{AttentionConfig, DiscreteMamba2Config, MixerConfig, ModelConfig, StateSize};
use serde::Serialize;

/// The sizes of the state of a model, and of the teacher and the student that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StateSizes {
    /// `teacher`, `hybrid` or `student`.
    pub architecture: &'static str,
    /// The model itself.
    pub model: StateSize,
    /// The network with attention in every layer.
    pub teacher: StateSize,
    /// The network with attention in no layer.
    pub student: StateSize,
}

impl StateSizes {
    /// The sizes for a configuration. If the model has no layer of one kind, the sizes of that kind are those of the
    /// published recipe, which distils attention into Mamba-2 layers: as many heads, each with its own keys and values,
    /// or B and C, and a state of the published size.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let network = config.network();
        let mixers = &network.mixers;
        let layers = mixers.len();
        let size = |mixer: &MixerConfig| mixer.state_size(network.d_model);
        let attends = |mixer: &&MixerConfig| mixer.has_attention_parts();
        let architecture = match mixers.iter().filter(attends).count() {
            0 => "student",
            n if n == layers => "teacher",
            _ => "hybrid",
        };
        let all = |attention: bool, otherwise: MixerConfig| {
            let known = mixers.iter().find(|mixer| attends(mixer) == attention);
            size(known.unwrap_or(&otherwise)).times(layers)
        };
        let heads = mixers.first().map_or(1, |mixer| mixer.n_heads());
        Self {
            architecture,
            model: network.state_size(),
            teacher: all(true, AttentionConfig::with_heads(heads).into()),
            student: all(false, DiscreteMamba2Config::with_heads(heads).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{PhiConfig, PhiMambaConfig};

    use super::*;

    /// phi-1.5's, whose student has a state of 24 x 32 heads of 64 x 64, and windows of 3 x 2048
    /// channels, and whose cache takes 24 x 2 rows of 2048 a token.
    #[test]
    fn each_kind_knows_the_other() {
        let teacher = PhiConfig::default();
        let mixer = DiscreteMamba2Config::default();
        let of_teacher = StateSize {
            fixed: 0,
            per_token: 24 * 2 * 2048 * 4,
        };
        let of_student = StateSize {
            fixed: 24 * (32 * 64 * 64 + 3 * 2048 * 4) * 4,
            per_token: 0,
        };
        let sizes = StateSizes::of(&ModelConfig::Phi(teacher.clone()));
        assert_eq!(sizes.architecture, "teacher");
        assert_eq!(sizes.model, of_teacher);
        assert_eq!((sizes.teacher, sizes.student), (of_teacher, of_student));
        for (attention_layers, architecture) in [(&[][..], "student"), (&[3, 9], "hybrid")] {
            let student = PhiMambaConfig::student_of(&teacher, &mixer, attention_layers).unwrap();
            let sizes = StateSizes::of(&ModelConfig::PhiMamba(student));
            let kept = attention_layers.len();
            assert_eq!(sizes.architecture, architecture);
            assert_eq!(sizes.model.fixed, of_student.fixed / 24 * (24 - kept));
            assert_eq!(sizes.model.per_token, of_teacher.per_token / 24 * kept);
            assert_eq!((sizes.teacher, sizes.student), (of_teacher, of_student));
        }
    }
}
