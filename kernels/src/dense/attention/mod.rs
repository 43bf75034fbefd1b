//! Causal softmax attention with grouped key and value heads: the teacher's mixing, and the
//! hybrid's.
//!
//! Heads stay where the projections put them, `[b, l, h, p]`, so nothing is transposed.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::profile::{Kind, timed};

/// Gradients to queries, keys and values.
pub type Gradients<B> = (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>);

/// The op, as backends compute it.
pub trait Attention: Backend {
    /// See [`attention()`].
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        reference::forward(q, k, v)
    }

    /// Gradients of [`Attention::attention_forward`] to queries, keys and values, from `dy [b, l, h, p]`.
    fn attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        dy: Tensor<Self, 4>,
    ) -> Gradients<Self> {
        reference::backward(q, k, v, dy)
    }

    /// See [`attention_matrix`].
    fn attention_matrix(q: Tensor<Self, 4>, k: Tensor<Self, 4>) -> Tensor<Self, 4> {
        reference::matrix(q, k)
    }
}

by_default!(Attention for ndarray);

/// Queries `[b, l, h, p]`, which are the last `l` of `t` positions; keys and values `[b, t, g, p]`
/// with `g` dividing `h` (head `i` reads group `i / (h / g)`); to `[b, l, h, p]`. Scores are divided
/// by `sqrt(p)`; the softmax is f32 for half-precision inputs.
///
/// The CubeCL backends' forward pass takes memory for its output alone, whatever the lengths. The backward
/// pass holds the weights, `[b, h, l, t]` in f32, everywhere.
///
/// # Panics
/// If the shapes do not fit together as above, or the dtypes differ.
pub fn attention<B: Attention>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    check(&q, &k);
    assert_eq!(
        v.dtype(),
        k.dtype(),
        "attention: values must have the dtype of the keys"
    );
    assert_eq!(
        v.dims(),
        k.dims(),
        "attention: values must have the shape of the keys"
    );
    timed(Kind::Attention, || B::attention_forward(q, k, v))
}

/// The softmaxed weights of [`attention`], `[b, h, l, t]`; f32 for half-precision inputs.
///
/// # Panics
/// If the shapes do not fit together as there, or the dtypes differ.
pub fn attention_matrix<B: Attention>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 4> {
    check(&q, &k);
    timed(Kind::Attention, || B::attention_matrix(q, k))
}

fn check<B: Backend>(q: &Tensor<B, 4>, k: &Tensor<B, 4>) {
    let ([b, l, h, p], [_, t, g, _]) = (q.dims(), k.dims());
    assert_eq!(
        q.dtype(),
        k.dtype(),
        "attention: queries must have the dtype of the keys"
    );
    assert_eq!(
        k.dims(),
        [b, t, g, p],
        "attention: keys must be [b, t, g, p]"
    );
    assert!(l <= t, "attention: {l} queries, but only {t} positions");
    assert!(
        g > 0 && h.is_multiple_of(g),
        "attention: {g} groups must divide {h} heads"
    );
}
