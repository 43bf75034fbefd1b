//! Which layers can be trained by a stage that compares layer by layer, and the sum of their losses.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use model::{MixerConfig, NetworkConfig};

/// Why a stage cannot train a student.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrainable {
    /// A layer that should learn and cannot.
    #[error("layer {layer}, {mixer}, cannot learn in it: {reason}")]
    Layer {
        /// The layer, from 0.
        layer: usize,
        /// Its mixer.
        mixer: &'static str,
        /// What is missing.
        reason: String,
    },
    /// Every layer keeps the teacher's mixer.
    #[error("none of the {layers} layers can learn in it: all of them keep the teacher's {mixer}")]
    Nothing {
        /// How many there are.
        layers: usize,
        /// The teacher's mixer that they keep.
        mixer: &'static str,
    },
}

/// The pairs of teacher's and student's mixers of the layers that learn.
pub(super) fn learning<'a>(
    teacher: &'a NetworkConfig,
    student: &'a NetworkConfig,
) -> impl Iterator<Item = (&'a MixerConfig, &'a MixerConfig)> {
    let pairs = teacher.mixers.iter().zip(&student.mixers);
    pairs.filter(|(teacher, student)| !student.is_kept_from(teacher))
}

/// The layers that keep the teacher's mixer. Calls `check` with the teacher's and the student's mixer of every other
/// layer, and returns its first error.
pub(super) fn idle(
    teacher: &NetworkConfig,
    student: &NetworkConfig,
    check: impl Fn(&MixerConfig, &MixerConfig) -> Result<(), String>,
) -> Result<Vec<usize>, Untrainable> {
    let mut idle = vec![];
    let mixers = teacher.mixers.iter().zip(&student.mixers);
    for (layer, (of_teacher, of_student)) in mixers.enumerate() {
        if of_student.is_kept_from(of_teacher) {
            idle.push(layer);
            continue;
        }
        check(of_teacher, of_student).map_err(|reason| Untrainable::Layer {
            layer,
            mixer: of_student.kind(),
            reason,
        })?;
    }
    if idle.len() < student.mixers.len() {
        return Ok(idle);
    }
    Err(Untrainable::Nothing {
        layers: idle.len(),
        mixer: teacher
            .mixers
            .first()
            .map_or("mixers", |mixer| mixer.kind()),
    })
}

/// The sum of one element for each layer that has a loss; zero if none has.
pub(super) fn sum_over_layers<B: Backend>(
    losses: Vec<Tensor<B, 1>>,
    device: &B::Device,
) -> Tensor<B, 1> {
    if losses.is_empty() {
        Tensor::zeros([1], device)
    } else {
        Tensor::cat(losses, 0).sum()
    }
}

#[cfg(test)]
mod tests {
    use model::{DiscreteMamba2Config, Family, PhiConfig};

    use super::*;

    #[test]
    fn layers_are_idle_or_checked() {
        let phi = PhiConfig::default();
        let mixer = DiscreteMamba2Config::default();
        let all: Vec<_> = (0..phi.num_hidden_layers).collect();
        let of = |attention_layers: &[usize]| {
            let student = phi.student(&mixer.clone().into(), attention_layers);
            student.expect("a student").network()
        };
        let teacher = phi.network();
        let passes = |_: &MixerConfig, _: &MixerConfig| Ok(());
        assert_eq!(idle(&teacher, &of(&[]), passes), Ok(vec![]));
        let hybrid = of(&[0, 5]);
        assert_eq!(idle(&teacher, &hybrid, passes), Ok(vec![0, 5]));
        assert_eq!(learning(&teacher, &hybrid).count(), all.len() - 2);
        let refused = idle(&teacher, &hybrid, |_, _| Err("it has no matrix".into()));
        let message = refused.unwrap_err().to_string();
        assert!(message.starts_with("layer 1, mamba2"), "{message}");
        assert!(message.ends_with("it has no matrix"), "{message}");
        let message = idle(&teacher, &of(&all), passes).unwrap_err().to_string();
        assert!(message.contains("none of the 24 layers"), "{message}");
    }
}
