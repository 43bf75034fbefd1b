//! Rotary position embedding (RoFormer, arXiv 2104.09864) of the first dimensions of each head.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::f64::consts::TAU;

use burn::tensor::backend::{Backend, DeviceId, DeviceOps};
use burn::tensor::{Tensor, TensorData};
use kernels::{DocumentStarts, KernelBackend};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config_error::{ConfigError, check_positive};

/// How the frequencies of a rotary embedding are changed for sequences that are longer than those it was first
/// trained on. The names are transformers' `rope_type`s.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Every frequency is divided by `factor`.
    Linear {
        /// How many times longer the sequences are.
        factor: f64,
    },
    /// Llama 3's: a frequency that makes `t` turns over the original positions stays for
    /// `t > high_freq_factor`, is divided by `factor` for `t < low_freq_factor`, and is blended linearly in `t`
    /// between.
    Llama3 {
        /// How many times longer the sequences are.
        factor: f64,
        /// Turns below which a frequency is divided.
        low_freq_factor: f64,
        /// Turns above which it stays.
        high_freq_factor: f64,
        /// The positions of the first training.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// `frequency`, in radians a position, as it is with the scaling.
    pub fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let turns = original as f64 * frequency / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }

    /// Checks that the values are in range and fit together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the first value that is wrong.
    pub fn validate(self) -> Result<(), ConfigError> {
        match self {
            Self::Linear { factor } => check_positive("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                for (key, value) in [
                    ("factor", factor),
                    ("low_freq_factor", low_freq_factor),
                    ("high_freq_factor", high_freq_factor),
                    (
                        "original_max_position_embeddings",
                        original_max_position_embeddings as f64,
                    ),
                ] {
                    check_positive(key, value)?;
                }
                if low_freq_factor < high_freq_factor {
                    return Ok(());
                }
                Err(ConfigError::Invalid(format!(
                    "`low_freq_factor` is {low_freq_factor}; it must be less than `high_freq_factor`, which is \
                     {high_freq_factor}"
                )))
            }
        }
    }

    /// The members that transformers gives it, `rope_type` among them.
    pub fn to_json(self) -> Value {
        match self {
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }
}

/// The frequencies of a rotary embedding of `dim` dimensions, in radians a position: `theta^(-2i / dim)` for
/// `i < dim / 2`, with the scaling.
pub fn rotary_frequencies(dim: usize, theta: f64, scaling: Option<RopeScaling>) -> Vec<f64> {
    let frequency = |i: usize| {
        let plain = theta.powf(-2.0 * i as f64 / dim as f64);
        scaling.map_or(plain, |scaling| scaling.apply(plain))
    };
    (0..dim / 2).map(frequency).collect()
}

/// Runs of positions whose angles a thread keeps: as many as the sequences of a batch that take a step
/// together, each at its own position.
const KEPT: usize = 16;

/// What angles depend on.
#[derive(PartialEq)]
struct Key {
    backend: TypeId,
    device: DeviceId,
    dim: usize,
    theta: f64,
    scaling: Option<RopeScaling>,
    /// The first position; below 0, angles turn back.
    start: i64,
    l: usize,
}

thread_local! {
    /// The angles that this thread has made last: every layer of a pass asks for the same.
    static MADE: RefCell<VecDeque<(Key, Box<dyn Any>)>> = const { RefCell::new(VecDeque::new()) };
}

/// The positions of the tokens of some rows.
pub(crate) enum Positions<'a, B: Backend> {
    /// One after the other, from here on.
    From(usize),
    /// Those in the documents of the rows.
    In(&'a DocumentStarts<B>),
}

impl<B: Backend> Clone for Positions<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Positions<'_, B> {}

impl<'a, B: Backend> Positions<'a, B> {
    /// Those of rows that begin with `documents`, or with one document each.
    pub(crate) fn of(documents: &'a Option<DocumentStarts<B>>) -> Self {
        match documents {
            Some(documents) => Self::In(documents),
            None => Self::From(0),
        }
    }
}

/// The angles for a run of positions.
///
/// Pairs are `(i, i + dim / 2)` for `i < dim / 2`, each turned by the position times its
/// [frequency](rotary_frequencies).
#[derive(Clone)]
pub(crate) struct Rotary<B: Backend> {
    /// `[l, dim / 2]`; with documents `[b * l, dim / 2]`, since each row has positions of its own.
    pub cos: Tensor<B, 2>,
    /// As the cosines.
    pub sin: Tensor<B, 2>,
    has_documents: bool,
}

impl<B: KernelBackend> Rotary<B> {
    /// For positions `start..start + l`. The angles are computed in 64 bits on the host: in 32, the
    /// product of a late position and a frequency has lost four digits before its cosine is taken.
    pub(crate) fn new(
        dim: usize,
        theta: f64,
        scaling: Option<RopeScaling>,
        start: usize,
        l: usize,
        device: &B::Device,
    ) -> Self {
        Self::kept(dim, theta, scaling, start as i64, l, device)
    }

    /// For rows of `l` tokens.
    pub(crate) fn at(
        dim: usize,
        theta: f64,
        scaling: Option<RopeScaling>,
        positions: Positions<'_, B>,
        l: usize,
        device: &B::Device,
    ) -> Self {
        match positions {
            Positions::From(start) => Self::new(dim, theta, scaling, start, l, device),
            Positions::In(documents) => {
                let Self { cos, sin, .. } = Self::new(dim, theta, scaling, 0, l, device);
                let [b, l] = documents.dims();
                let places = documents.positions().reshape([b * l]);
                Self {
                    cos: cos.select(0, places.clone()),
                    sin: sin.select(0, places),
                    has_documents: true,
                }
            }
        }
    }

    /// For one vector, turned back by `n` positions.
    pub(crate) fn back(
        dim: usize,
        theta: f64,
        scaling: Option<RopeScaling>,
        n: usize,
        device: &B::Device,
    ) -> Self {
        Self::kept(dim, theta, scaling, -(n as i64), 1, device)
    }

    /// The angles that are kept, or new ones.
    fn kept(
        dim: usize,
        theta: f64,
        scaling: Option<RopeScaling>,
        start: i64,
        l: usize,
        device: &B::Device,
    ) -> Self {
        let key = Key {
            backend: TypeId::of::<B>(),
            device: device.id(),
            dim,
            theta,
            scaling,
            start,
            l,
        };
        MADE.with_borrow_mut(|made| {
            let known = made.iter().find(|(other, _)| *other == key);
            if let Some(angles) = known.and_then(|(_, angles)| angles.downcast_ref::<Self>()) {
                return angles.clone();
            }
            let frequencies = rotary_frequencies(dim, theta, scaling);
            let angles = Self::make(&frequencies, start, l, device);
            made.truncate(KEPT - 1);
            made.push_front((key, Box::new(angles.clone())));
            angles
        })
    }

    fn make(frequencies: &[f64], start: i64, l: usize, device: &B::Device) -> Self {
        let half = frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(l * half), Vec::with_capacity(l * half));
        for position in start..start + l as i64 {
            for frequency in frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        // In one dimension first: Burn pads rows of what comes from the host, and kernels would copy them.
        let tensor = |values| {
            let values = TensorData::new(values, [l * half]);
            Tensor::<B, 1>::from_data(values, device).reshape([l, half])
        };
        Self {
            cos: tensor(cos),
            sin: tensor(sin),
            has_documents: false,
        }
    }

    /// `x [b, l, h, p]` with the first `dim` of each head's `p` dimensions turned.
    pub(crate) fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.by_tokens(x, |x| {
            kernels::rotary(x, self.cos.clone(), self.sin.clone())
        })
    }

    /// [`rotate`](Self::rotate) for the first `heads` heads, in place if nothing else holds `x`.
    pub(crate) fn rotate_heads(&self, x: Tensor<B, 4>, heads: usize) -> Tensor<B, 4> {
        self.by_tokens(x, |x| {
            kernels::rotary_of_heads(x, self.cos.clone(), self.sin.clone(), heads)
        })
    }

    /// `turn` of `x [b, l, h, p]`, as one row of `b * l` tokens where each has angles of its own.
    fn by_tokens(
        &self,
        x: Tensor<B, 4>,
        turn: impl FnOnce(Tensor<B, 4>) -> Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        if !self.has_documents {
            return turn(x);
        }
        let [b, l, h, p] = x.dims();
        turn(x.reshape([1, b * l, h, p])).reshape([b, l, h, p])
    }
}
