//! The arithmetic that a token takes.
//!
//! An addition and a multiplication count as two operations. A weight of a projection takes 2 forward and,
//! where the loss goes back through it, 4 backward; what is computed again in the backward pass does not
//! count, as is usual. With `d` the width, `v` the vocabulary, `m` the MLP's width, `h` heads of `p` and states
//! of `n` by `p`, and `i` rows of the mixer's input projection:
//!
//! - attention: `2 d (2 d + 2 d_kv)` for its projections; `2 l h p` for scores and sums, since a token sees
//!   half of the sequence on average
//! - Discrete-Mamba-2: `2 d i + 2 d d_inner`; `4 h n p` for the recurrence
//! - MLP: `4 d m`; head: `2 d v`. The embedding multiplies nothing.

use model::{MixerConfig, NetworkConfig};

/// Operations a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// Of the teacher's forward pass.
    pub teacher: f64,
    /// Of the student's forward and backward pass.
    pub student: f64,
}

impl Arithmetic {
    /// The forward pass of the teacher alone, its head included, on sequences of `l` tokens.
    pub fn teacher_alone(l: usize, teacher: &NetworkConfig) -> Self {
        Self {
            teacher: network(teacher, l),
            student: 0.0,
        }
    }

    /// Of both.
    pub fn total(self) -> f64 {
        self.teacher + self.student
    }
}

/// All layers and the head.
pub(super) fn network(network: &NetworkConfig, l: usize) -> f64 {
    let mixers: f64 = (network.mixers.iter())
        .map(|config| mixer(config, l, network))
        .sum();
    mixers + network.mixers.len() as f64 * mlp(network) + head(network)
}

pub(super) fn mixer(mixer: &MixerConfig, l: usize, network: &NetworkConfig) -> f64 {
    let d = network.d_model as f64;
    match mixer {
        MixerConfig::Attention(attention) => {
            let d_kv = d * attention.n_kv_heads as f64 / attention.n_heads as f64;
            2.0 * d * (2.0 * d + 2.0 * d_kv) + 2.0 * l as f64 * d
        }
        MixerConfig::DiscreteMamba2(mamba) => {
            let d_inner = mamba.d_inner(network.d_model) as f64;
            let rows = mamba.d_in_proj(network.d_model) as f64;
            2.0 * d * rows + 2.0 * d * d_inner + 4.0 * d_inner * mamba.d_state as f64
        }
    }
}

pub(super) fn mlp(network: &NetworkConfig) -> f64 {
    4.0 * network.d_model as f64 * network.intermediate_size as f64
}

pub(super) fn head(network: &NetworkConfig) -> f64 {
    2.0 * network.d_model as f64 * network.vocab_size as f64
}

#[cfg(test)]
mod tests {
    use model::{DiscreteMamba2Config, PhiConfig, PhiMambaConfig};

    use super::*;
    use crate::stages::Kind;

    /// Against twice and six times the parameters that take part.
    #[test]
    fn phi_takes_what_its_parameters_say() {
        let phi = PhiConfig::default();
        let mixer = DiscreteMamba2Config {
            d_state: 64,
            n_qk_heads: 32,
            n_v_heads: 32,
            expand: 1,
            ..Default::default()
        };
        let student = PhiMambaConfig::student_of(&phi, &mixer, &[]).unwrap();
        let (teacher, student) = (NetworkConfig::from(&phi), NetworkConfig::from(&student));
        let of = |kind, l| {
            let kind = Kind::named(kind).expect("a kind");
            let all = kind.arithmetic(l, &teacher, &student);
            (1e-9 * all.teacher, 1e-9 * all.student)
        };
        let giga = |kind| of(kind, 2048);
        let near = |x: f64, expected: f64, by: f64| {
            assert!((x / expected - 1.0).abs() < by, "{x} instead of {expected}");
        };
        let alone = 1e-9 * Arithmetic::teacher_alone(2048, &teacher).total();
        near(alone, 2.83, 0.01);
        assert_eq!(giga("predictions").0, alone);
        // All but the head and an MLP.
        near(giga("hidden_states").0, 2.83 - 0.21 - 0.07, 0.01);
        assert!(giga("matrices").0 < giga("hidden_states").0);
        // 505 million parameters of mixers, and their recurrence.
        near(giga("hidden_states").1, 3.03, 0.02);
        // 1.521 billion parameters, of which 105 million are the embedding's.
        near(giga("predictions").1 + 6.0 * 0.1049, 9.13, 0.01);
        // Attention's share grows with the sequence, the mixers' does not.
        let long = of("predictions", 16384);
        near(long.0, 2.83 + 7.0 * 0.2013, 0.01);
        assert_eq!(long.1, giga("predictions").1);
    }
}
