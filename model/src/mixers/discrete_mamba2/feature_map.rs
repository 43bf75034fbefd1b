//! What B and C go through before their products are taken.
//!
//! Softmax attention weighs tokens by `exp(q . k)`, which is a product of positive features of queries and keys. A
//! state uses the plain products, so the contributions of other tokens can have either sign. With a feature map, the
//! products are positive, as in linear attention (arXiv 2006.16236); with `softmax`, their sum is also bounded (this is
//! one half of the features of arXiv 2402.04347). Rotary positions are applied to the output of the map, so that
//! products depend only on distances.

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::precision::{to_dtype, widen};

/// A map of the `d_state` numbers of each head of B and of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureMap {
    /// They stay as they are, as in the published models.
    #[default]
    Identity,
    /// `exp` of each number. It overflows above 88.
    Exp,
    /// `exp` of each number over their sum.
    Softmax,
}

impl FeatureMap {
    /// Whether numbers stay as they are.
    pub fn is_identity(&self) -> bool {
        *self == Self::Identity
    }

    /// `x [b, l, g, n]` mapped, in f32 for half-precision inputs before it is rounded.
    pub(super) fn of<B: Backend>(self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let dtype = x.dtype();
        match self {
            Self::Identity => x,
            Self::Exp => to_dtype(widen(x).exp(), dtype),
            Self::Softmax => to_dtype(softmax(widen(x), 3), dtype),
        }
    }
}
