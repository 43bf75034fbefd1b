//! The mixers of students as the configuration of a run describes them, without the values that follow from the
//! teacher's attention.
//!
//! A kind of them is a type with its options that implements [`StudentOptions`], in the folder of its mixer, and one
//! entry of the list at the end of this file.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::MixerConfig;
use super::attention::AttentionConfig;
use super::beside_attention::{HeadsStudent, WindowStudent};
use super::discrete_mamba2::Mamba2Student;
use super::low_rank::LowRankStudent;
use super::toeplitz::ToeplitzStudent;
use crate::config_error::ConfigError;

/// The options of one kind of student mixer. Their `Default` is the schema of a configuration: every key has a value,
/// and no value is null.
pub(crate) trait StudentOptions: Default + Serialize + DeserializeOwned {
    /// The mixer in the place of a teacher's attention in `layer`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the options do not fit the teacher.
    fn mixer(
        &self,
        layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError>;

    /// Checks that the layers that the options name are among the teacher's `layers`, and not among `kept`, the
    /// layers that keep attention.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the first that is not.
    fn check(&self, _layers: usize, _kept: &[usize]) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The options of the state-space mixer in it, if there is one.
    fn mamba(&self) -> Option<&Mamba2Student> {
        None
    }
}

macro_rules! student_mixers {
    ($($(#[$doc:meta])* $kind:ident($options:ident) = $name:literal;)*) => {
        /// The mixer of a student.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum StudentMixer {
            $($(#[$doc])* #[serde(rename = $name)] $kind($options),)*
        }

        impl StudentMixer {
            /// What configurations call the kinds.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// That of a configuration, with every default.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind($options::default())),)*
                    _ => None,
                }
            }

            /// The mixer of `layer`, in the place of `of_teacher` in a network `d_model` wide.
            ///
            /// # Errors
            /// [`ConfigError::Invalid`] if that is no attention, or the options do not fit it.
            pub fn mixer(
                &self,
                layer: usize,
                of_teacher: &MixerConfig,
                d_model: usize,
            ) -> Result<MixerConfig, ConfigError> {
                let MixerConfig::Attention(attention) = of_teacher else {
                    return Err(ConfigError::Invalid(format!(
                        "a student's mixer takes the place of attention, and the teacher has {}",
                        of_teacher.describe(d_model)
                    )));
                };
                match self {
                    $(Self::$kind(options) => options.mixer(layer, attention, d_model),)*
                }
            }

            /// Checks that the layers that the options name are among the teacher's `layers`, and not among `kept`, the
    /// layers that keep attention.
            ///
            /// # Errors
            /// [`ConfigError::Invalid`] names the first that is not.
            pub fn check(&self, layers: usize, kept: &[usize]) -> Result<(), ConfigError> {
                match self {
                    $(Self::$kind(options) => options.check(layers, kept),)*
                }
            }

            /// The options of the state-space mixer in it, if there is one.
            pub fn mamba(&self) -> Option<&Mamba2Student> {
                match self {
                    $(Self::$kind(options) => options.mamba(),)*
                }
            }
        }
    };
}

student_mixers! {
    /// The state-space mixer alone.
    Mamba2(Mamba2Student) = "mamba2";
    /// Beside the teacher's attention within a window.
    Mamba2Window(WindowStudent) = "mamba2_window";
    /// Beside some of the teacher's heads.
    Mamba2Heads(HeadsStudent) = "mamba2_heads";
    /// A Toeplitz matrix in each head, for comparison.
    Toeplitz(ToeplitzStudent) = "toeplitz";
    /// A causal matrix of low rank in each head, for comparison.
    LowRank(LowRankStudent) = "low_rank";
}

impl StudentMixer {
    /// Whether attention within a window stands beside its state-space mixer.
    pub fn has_window(&self) -> bool {
        matches!(self, Self::Mamba2Window(_))
    }

    /// The options as JSON, `kind` among them.
    pub fn to_json(&self) -> Value {
        serde_json::json!(self)
    }
}
