//! Which layers of a student keep the teacher's mixer: for every family of students.

use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;

/// The mixers of a student: those of `teachers` in `attention_layers` (counted from 0, in any order), and in every
/// other layer what `mixer` gives for its number and the teacher's mixer.
///
/// # Errors
/// [`ConfigError::Invalid`] if a layer does not exist or is named twice, and those of `mixer`.
pub fn student_mixers(
    teachers: Vec<MixerConfig>,
    attention_layers: &[usize],
    mixer: impl Fn(usize, &MixerConfig) -> Result<MixerConfig, ConfigError>,
) -> Result<Vec<MixerConfig>, ConfigError> {
    let layers = teachers.len();
    let mut is_attention = vec![false; layers];
    for &layer in attention_layers {
        let Some(seen) = is_attention.get_mut(layer) else {
            return Err(ConfigError::Invalid(format!(
                "attention layer {layer} does not exist: the teacher's layers are 0 to {}",
                layers - 1
            )));
        };
        if std::mem::replace(seen, true) {
            return Err(ConfigError::Invalid(format!(
                "attention layer {layer} is named twice"
            )));
        }
    }
    let kept = teachers.into_iter().zip(is_attention).enumerate();
    let mixers = kept.map(|(layer, (teachers, kept))| {
        if kept {
            Ok(teachers)
        } else {
            mixer(layer, &teachers)
        }
    });
    mixers.collect()
}
