//! Which layers a stage that compares layer by layer can train.

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
        mixer: String,
        /// What is missing.
        reason: String,
    },
    /// Every layer keeps the teacher's mixer.
    #[error("none of the {layers} layers can learn in it: all of them keep the teacher's {mixer}")]
    Nothing {
        /// How many there are.
        layers: usize,
        /// What they keep.
        mixer: String,
    },
}

/// The layers whose mixer is the teacher's own, after every other has passed `check`, which is given the
/// teacher's and the student's mixer.
pub(super) fn idle(
    teacher: &NetworkConfig,
    student: &NetworkConfig,
    check: impl Fn(&MixerConfig, &MixerConfig) -> Result<(), String>,
) -> Result<Vec<usize>, Untrainable> {
    let mut idle = vec![];
    let mixers = teacher.mixers.iter().zip(&student.mixers);
    for (layer, (of_teacher, of_student)) in mixers.enumerate() {
        if of_student == of_teacher {
            idle.push(layer);
            continue;
        }
        check(of_teacher, of_student).map_err(|reason| Untrainable::Layer {
            layer,
            mixer: name(of_student).to_owned(),
            reason,
        })?;
    }
    if idle.len() < student.mixers.len() {
        return Ok(idle);
    }
    Err(Untrainable::Nothing {
        layers: idle.len(),
        mixer: teacher.mixers.first().map_or("mixers", name).to_owned(),
    })
}

pub(super) fn name(mixer: &MixerConfig) -> &'static str {
    match mixer {
        MixerConfig::Attention(_) => "attention",
        MixerConfig::DiscreteMamba2(_) => "Discrete-Mamba-2",
    }
}
