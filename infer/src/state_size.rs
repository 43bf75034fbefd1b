//! What a sequence takes of memory in a model in f32.
//!
//! In bf16 and f16 the recurrent states of Mamba layers stay in f32, while their convolutions' windows
//! and attention's keys and values may take half of what is said here.

use model::{DiscreteMamba2Config, MixerConfig, ModelConfig, NetworkConfig};
use serde::Serialize;

/// The state of one sequence: `fixed + per_token * tokens` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub fixed: usize,
    pub per_token: usize,
}

/// The model's, and that of both networks that it could have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memories {
    /// What the model is: `teacher`, `hybrid` or `student`.
    pub architecture: &'static str,
    pub model: Memory,
    /// With attention in every layer.
    pub teacher: Memory,
    /// With attention in none.
    pub student: Memory,
}

/// Of a number in f32.
const BYTES: usize = 4;

impl Memories {
    /// A network of one kind stands beside the one of the other that it was, or would be, distilled
    /// from or into by the published recipe: as many heads, each with its own keys and values, or B
    /// and C, and a state of the published size.
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
        let all = |kind: bool, otherwise: Memory| {
            let known = mixers.iter().find(|mixer| attention(mixer) == kind);
            let one = known.map_or(otherwise, |mixer| Memory::of(mixer, d_model));
            one.times(layers)
        };
        let heads = mixers.first().map_or(1, |mixer| match mixer {
            MixerConfig::Attention(attention) => attention.n_heads,
            MixerConfig::DiscreteMamba2(mixer) => mixer.n_v_heads,
        });
        let keys_and_values = Memory {
            fixed: 0,
            per_token: 2 * d_model * BYTES,
        };
        let published = MixerConfig::DiscreteMamba2(DiscreteMamba2Config {
            n_v_heads: heads,
            n_qk_heads: heads,
            ..DiscreteMamba2Config::default()
        });
        let each = mixers.iter().map(|mixer| Memory::of(mixer, d_model));
        Self {
            architecture,
            model: each.fold(Memory::default(), Memory::plus),
            teacher: all(true, keys_and_values),
            student: all(false, Memory::of(&published, d_model)),
        }
    }
}

/// Sizes that a configuration may have can add up to more than there are numbers for.
impl Memory {
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

    /// Bytes behind so many tokens.
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
        let of_teacher = Memory {
            fixed: 0,
            per_token: 24 * 2 * 2048 * 4,
        };
        let of_student = Memory {
            fixed: 24 * (32 * 64 * 64 + 3 * 2048 * 4) * 4,
            per_token: 0,
        };
        let memories = Memories::of(&ModelConfig::Phi(teacher.clone()));
        assert_eq!(memories.architecture, "teacher");
        assert_eq!(memories.model, of_teacher);
        assert_eq!(
            (memories.teacher, memories.student),
            (of_teacher, of_student)
        );
        for (attention_layers, architecture) in [(&[][..], "student"), (&[3, 9], "hybrid")] {
            let student = PhiMambaConfig::student_of(&teacher, &mixer, attention_layers).unwrap();
            let memories = Memories::of(&ModelConfig::PhiMamba(student));
            let kept = attention_layers.len();
            assert_eq!(memories.architecture, architecture);
            assert_eq!(memories.model.fixed, of_student.fixed / 24 * (24 - kept));
            assert_eq!(memories.model.per_token, of_teacher.per_token / 24 * kept);
            assert_eq!(
                (memories.teacher, memories.student),
                (of_teacher, of_student)
            );
        }
    }
}
