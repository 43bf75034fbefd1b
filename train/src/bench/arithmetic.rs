//! The arithmetic that a token takes.

use model::NetworkConfig;

/// Operations a token, an addition and a multiplication counting as two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Arithmetic {
    pub(super) teacher: f64,
    pub(super) student: f64,
}

impl Arithmetic {
    /// What stage `number` needs for sequences of `l` tokens; 0 is the teacher's forward pass alone.
    ///
    /// A weight of a projection takes 2 operations forward and, where the loss goes back through it, 4
    /// backward; what is computed again in the backward pass does not count, as is usual. With `d` the
    /// width, `v` the vocabulary, `m` the MLP's width, `h` heads of `p` and states of `n` by `p`, and `i`
    /// rows of the mixer's input projection:
    ///
    /// - attention: `2 d (2 d + 2 d_kv)` for its projections; `2 l h p` for scores and sums, since a token
    ///   sees half of the sequence on average
    /// - mixer: `2 d i + 2 d d_inner`; `4 h n p` for the recurrence
    /// - MLP: `4 d m`; head: `2 d v`. The embedding multiplies nothing.
    /// - stage 0: the teacher's layers and head
    /// - stage 1: the teacher's layers, of the last only queries and keys; of the student three times the
    ///   rows of B, C and A_log; `l h p` for the teacher's scores once more and `3 l h n` for the student's
    /// - stage 2: the teacher's layers but for the last MLP; three times the student's mixers
    /// - stage 3: the teacher's layers and head; three times the student's
    pub(super) fn of(
        number: u8,
        l: usize,
        teacher: &NetworkConfig,
        student: &NetworkConfig,
    ) -> Self {
        let whole = forward(teacher, l);
        let (head, mlp) = (
            teacher.head_operations(),
            teacher.mlp.operations(teacher.d_model),
        );
        let (d_teacher, d) = (teacher.d_model, student.d_model);
        // Of the student's mixers, those that are not the teacher's.
        let pairs = student.mixers.iter().zip(&teacher.mixers);
        let learning = || {
            pairs
                .clone()
                .filter(|(student, teacher)| !student.is_kept_from(teacher))
        };
        match number {
            0 => Self {
                teacher: whole,
                student: 0.0,
            },
            1 => {
                let last = teacher.mixers.last().map_or(0.0, |mixer| {
                    mixer.operations(d_teacher, l)
                        - mixer.matrix_operations(d_teacher, l).projections
                });
                let each = learning().map(|(student, teacher)| {
                    let matrix = student.matrix_operations(d, l);
                    let scores = teacher.matrix_operations(d_teacher, l).scores;
                    3.0 * (matrix.projections + matrix.scores) + scores
                });
                Self {
                    teacher: whole - head - mlp - last,
                    student: each.sum(),
                }
            }
            2 => {
                let each = learning().map(|(student, _)| student.operations(d, l));
                Self {
                    teacher: whole - head - mlp,
                    student: 3.0 * each.sum::<f64>(),
                }
            }
            _ => Self {
                teacher: whole,
                student: 3.0 * forward(student, l),
            },
        }
    }

    pub(super) fn total(self) -> f64 {
        self.teacher + self.student
    }
}

/// The layers and the head of a network.
fn forward(network: &NetworkConfig, l: usize) -> f64 {
    let d = network.d_model;
    let mixers = network.mixers.iter();
    let mixers: f64 = mixers.map(|mixer| mixer.operations(d, l)).sum();
    mixers + network.mixers.len() as f64 * network.mlp.operations(d) + network.head_operations()
}

#[cfg(test)]
mod tests {
    use model::PhiConfig;

    use super::*;
    use crate::config::{Config, Source};
    use crate::run::student_config;

    /// Against twice and six times the parameters that take part.
    #[test]
    fn phi_takes_what_its_parameters_say() {
        let config = Config::load(Source::Preset("phi-1.5"), &[]).unwrap();
        let phi = PhiConfig::default();
        let student = student_config(&config, &phi).unwrap();
        let (teacher, student) = (NetworkConfig::from(&phi), NetworkConfig::from(&student));
        let giga = |number| {
            let all = Arithmetic::of(number, 2048, &teacher, &student);
            (1e-9 * all.teacher, 1e-9 * all.student)
        };
        let near = |x: f64, expected: f64, by: f64| {
            assert!((x / expected - 1.0).abs() < by, "{x} instead of {expected}");
        };
        near(giga(0).0, 2.83, 0.01);
        assert_eq!(giga(3).0, giga(0).0);
        // All but the head and an MLP.
        near(giga(2).0, 2.83 - 0.21 - 0.07, 0.01);
        assert!(giga(1).0 < giga(2).0);
        // 505 million parameters of mixers, and their recurrence.
        near(giga(2).1, 3.03, 0.02);
        // 1.521 billion parameters, of which 105 million are the embedding's.
        near(giga(3).1 + 6.0 * 0.1049, 9.13, 0.01);
        // Attention's share grows with the sequence, the mixers' does not.
        let long = Arithmetic::of(3, 16384, &teacher, &student);
        near(1e-9 * long.teacher, 2.83 + 7.0 * 0.2013, 0.01);
        assert_eq!(1e-9 * long.student, giga(3).1);
    }
}
