//! The number of floating-point operations for a token. A multiplication with an addition counts as two.
//!
//! A weight of a projection takes 2 operations forward and, if the loss reaches it, 4 backward. As usual, recomputation
//! in the backward pass does not count. [`model::MixerOptions::operations`] and similar functions count single layers;
//! the embedding multiplies nothing.

use model::NetworkConfig;

/// Operations a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// For the teacher's forward pass.
    pub teacher: f64,
    /// For the student's forward and backward pass.
    pub student: f64,
}

impl Arithmetic {
    /// The forward pass of the teacher alone, its head included, on sequences of `l` tokens.
    pub fn teacher_alone(l: usize, teacher: &NetworkConfig) -> Self {
        Self {
            teacher: forward(teacher, l),
            student: 0.0,
        }
    }

    /// The sum of both.
    pub fn total(self) -> f64 {
        self.teacher + self.student
    }
}

/// The forward pass of all layers and the head.
pub(super) fn forward(network: &NetworkConfig, l: usize) -> f64 {
    let d = network.d_model;
    let mixers = network.mixers.iter();
    let mixers: f64 = mixers.map(|mixer| mixer.operations(d, l)).sum();
    mixers + network.mixers.len() as f64 * network.mlp.operations(d) + network.head_operations()
}

/// The same without the last layer's MLP and the head.
pub(super) fn to_last_mixer(network: &NetworkConfig, l: usize) -> f64 {
    forward(network, l) - network.head_operations() - network.mlp.operations(network.d_model)
}

#[cfg(test)]
mod tests {
    use model::{DiscreteMamba2Config, Family, PhiConfig};

    use super::*;
    use crate::stages::Kind;

    /// Compared with 2 and 6 operations for each parameter that takes part.
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
        let student = phi.student(&mixer.into(), &[]).unwrap();
        let (teacher, student) = (phi.network(), student.network());
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
