//! The ids that a teacher finds likeliest, for a cache of its predictions: [`TopClasses`] of its logits.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::top_classes::TopClasses;
use crate::profile::{Kind, timed};

/// The smallest logarithm of a probability: f16 holds it, and zero times it is zero.
pub const LEAST: f32 = -60_000.0;

/// The op, as backends compute it.
pub trait Likeliest: Backend {
    /// See [`likeliest`].
    fn likeliest(logits: Tensor<Self, 2>, k: usize) -> TopClasses<Self> {
        reference::likeliest(logits, k)
    }
}

by_default!(Likeliest for ndarray, flex, autodiff);

/// Of each row of `logits [t, v]` the `k` likeliest ids, the likeliest first, and of equally likely ones those with the
/// smallest ids; the logarithms of their probabilities; and that of the probability of all others together, each
/// [`LEAST`] at least. The logarithms are f32, also for logits that are not. No gradient passes through it.
///
/// A row with a logit that is NaN or positive infinity has NaN among its logarithms.
///
/// # Panics
/// If `k` is not in `1..=v`.
pub fn likeliest<B: Likeliest>(logits: Tensor<B, 2>, k: usize) -> TopClasses<B> {
    let [_, v] = logits.dims();
    assert!((1..=v).contains(&k), "likeliest: {k} ids of {v}");
    timed(Kind::Losses, || B::likeliest(logits, k))
}
