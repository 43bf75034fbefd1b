//! The memory that the state of one sequence takes, in bytes, in a model in f32.
//!
//! In bf16 and f16 the recurrent states of Mamba layers stay in f32, while their convolutions' windows
//! and attention's keys and values may take half of the bytes given here.

use model::{DiscreteMamba2Config, MixerConfig, ModelConfig, NetworkConfig};
use serde::Serialize;

/// The state of one sequence: `fixed + per_token * tokens` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StateSize {
    /// Bytes that do not depend on the length of the text.
    pub fixed: usize,
    /// Bytes per token.
    pub per_token: usize,
}

/// The state of a model, and of the teacher and the student that it belongs to.
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

/// Bytes of a number in f32.
const BYTES: usize = 4;

impl StateSizes {
    /// The sizes for a configuration. Where the model has no layer of one kind, that kind is the one of
    /// the published recipe, which distils from or into it: as many heads, each with its own keys and
    /// values, or B and C, and a state of the published size.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let network = NetworkConfig::from(config);
        let d_model = network.d_model;
        let mixers = &network.mixers;
        let layers = mixers.len();
        let attention = |mixer: &&MixerConfig| matches!(mixer, MixerConfig::Attention(_));
        let architecture = match mixers.iter().filter(attention).count() {
            0 => "student",
            n if n == layers => "teacher",
            _ => "hybrid",
        };
        let all = |kind: bool, otherwise: StateSize| {
            let known = mixers.iter().find(|mixer| attention(mixer) == kind);
            let one = known.map_or(otherwise, |mixer| StateSize::of(mixer, d_model));
            one.times(layers)
        };
        let heads = mixers.first().map_or(1, |mixer| match mixer {
            MixerConfig::Attention(attention) => attention.n_heads,
            MixerConfig::DiscreteMamba2(mixer) => mixer.n_v_heads,
        });
        let keys_and_values = StateSize {
            fixed: 0,
            per_token: 2 * d_model * BYTES,
        };
        let published = MixerConfig::DiscreteMamba2(DiscreteMamba2Config {
            n_v_heads: heads,
            n_qk_heads: heads,
            ..DiscreteMamba2Config::default()
        });
        let each = mixers.iter().map(|mixer| StateSize::of(mixer, d_model));
        Self {
            architecture,
            model: each.fold(StateSize::default(), StateSize::plus),
            teacher: all(true, keys_and_values),
            student: all(false, StateSize::of(&published, d_model)),
        }
    }
}

/// The arithmetic saturates: the sizes of a configuration may add up to more than `usize::MAX`.
impl StateSize {
    fn of(mixer: &MixerConfig, d_model: usize) -> Self {
        match mixer {
            MixerConfig::Attention(attention) => Self {
                fixed: 0,
                per_token: 2 * attention.n_kv_heads * (d_model / attention.n_heads) * BYTES,
            },
            MixerConfig::DiscreteMamba2(mixer) => {
                let window = mixer.conv_dim(d_model) * mixer.d_conv;
                let state = mixer.d_inner(d_model) * mixer.d_state;
                Self {
                    fixed: (window + state) * BYTES,
                    per_token: 0,
                }
            }
        }
    }

    /// Bytes after `tokens` tokens.
    pub fn bytes(self, tokens: usize) -> usize {
        let growing = self.per_token.saturating_mul(tokens);
        self.fixed.saturating_add(growing)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            fixed: self.fixed.saturating_add(other.fixed),
            per_token: self.per_token.saturating_add(other.per_token),
        }
    }

    fn times(self, n: usize) -> Self {
        Self {
            fixed: self.fixed.saturating_mul(n),
            per_token: self.per_token.saturating_mul(n),
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
