//! A mixer with a window of the teacher's attention beside it, in the configuration of a run.

use kernels::Window;
use serde::{Deserialize, Serialize};

use super::{BesideAttentionConfig, Joined};
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::Mamba2Student;
use crate::mixers::student::StudentOptions;

/// The options of a student's mixer with the teacher's attention beside it, within a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowStudent {
    /// The state-space mixer's.
    #[serde(flatten)]
    pub mamba: Mamba2Student,
    /// The last tokens that attention reads, the own one included.
    pub window: usize,
    /// The first tokens of a sequence that it reads besides.
    pub sinks: usize,
}

impl Default for WindowStudent {
    fn default() -> Self {
        Self {
            mamba: Mamba2Student::default(),
            window: 64,
            sinks: 4,
        }
    }
}

impl StudentOptions for WindowStudent {
    fn mixer(&self, of_teacher: &AttentionConfig, d_model: usize) -> MixerConfig {
        BesideAttentionConfig {
            ssm: self.mamba.config(of_teacher, d_model),
            attention: Some(AttentionConfig {
                window: Some(Window {
                    window: self.window,
                    sinks: self.sinks,
                }),
                ..of_teacher.clone()
            }),
            joined: Joined::Sum,
        }
        .into()
    }

    fn mamba(&self) -> &Mamba2Student {
        &self.mamba
    }
}
