//! A mixer with some of the teacher's attention beside it, in the configuration of a run: all heads within a window,
//! or some of the heads.

use kernels::Window;
use serde::{Deserialize, Serialize};

use super::{BesideAttentionConfig, Joined};
use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;
use crate::mixers::attention::{AttentionConfig, kv_heads};
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
    fn mixer(
        &self,
        _layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError> {
        let mixer = BesideAttentionConfig {
            ssm: self.mamba.config(of_teacher, d_model),
            attention: Some(AttentionConfig {
                window: Some(Window {
                    window: self.window,
                    sinks: self.sinks,
                }),
                ..of_teacher.clone()
            }),
            heads: vec![],
            joined: Joined::Sum,
        };
        Ok(mixer.into())
    }

    fn mamba(&self) -> Option<&Mamba2Student> {
        Some(&self.mamba)
    }
}

/// The options of a student's mixer with some of the teacher's heads beside it. Each has the keys and values that it has
/// in the teacher, which heads of a layer share where as many of them read each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeadsStudent {
    /// The state-space mixer's.
    #[serde(flatten)]
    pub mamba: Mamba2Student,
    /// The heads that are kept, each as LAYER/HEAD, both from 0.
    pub heads: Vec<String>,
    /// How their output and the mixer's become one.
    pub joined: Joined,
}

impl Default for HeadsStudent {
    fn default() -> Self {
        Self {
            mamba: Mamba2Student::default(),
            heads: vec![],
            joined: Joined::Sum,
        }
    }
}

/// The layer and the head of `text`.
fn layer_and_head(text: &str) -> Option<(usize, usize)> {
    let (layer, head) = text.split_once('/')?;
    Some((layer.parse().ok()?, head.parse().ok()?))
}

/// The error for `text`, one of the heads.
fn refused<T>(text: &str, what: &str) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(format!(
        "`student.heads` has {text:?}, {what}; each is LAYER/HEAD, both from 0"
    )))
}

impl HeadsStudent {
    /// Each head as it is written, with its layer and its number there.
    fn named(&self) -> Result<Vec<(&str, usize, usize)>, ConfigError> {
        let mut all = vec![];
        for text in &self.heads {
            match layer_and_head(text) {
                Some((layer, head)) => all.push((text.as_str(), layer, head)),
                None => return refused(text, "which is no head"),
            }
        }
        Ok(all)
    }
}

impl StudentOptions for HeadsStudent {
    fn mixer(
        &self,
        layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError> {
        let mut heads = vec![];
        let n = of_teacher.n_heads;
        for (text, of, head) in self.named()? {
            if head >= n {
                return refused(text, &format!("and a layer of the teacher has {n} heads"));
            }
            if of == layer {
                if heads.contains(&head) {
                    return refused(text, "twice");
                }
                heads.push(head);
            }
        }
        heads.sort_unstable();
        let n = heads.len();
        let attention = (n > 0).then(|| AttentionConfig {
            n_heads: n,
            n_kv_heads: kv_heads(&heads, of_teacher.n_heads / of_teacher.n_kv_heads),
            head_dim: Some(of_teacher.head_dim(d_model)),
            ..of_teacher.clone()
        });
        let mixer = BesideAttentionConfig {
            ssm: self.mamba.config(of_teacher, d_model),
            attention,
            heads,
            joined: self.joined,
        };
        Ok(mixer.into())
    }

    fn check(&self, layers: usize, kept: &[usize]) -> Result<(), ConfigError> {
        for (text, layer, _) in self.named()? {
            if layer >= layers {
                return refused(text, &format!("and the teacher has {layers} layers"));
            }
            if kept.contains(&layer) {
                return refused(
                    text,
                    "and student.attention_layers keeps all heads of that layer",
                );
            }
        }
        Ok(())
    }

    fn mamba(&self) -> Option<&Mamba2Student> {
        Some(&self.mamba)
    }
}
