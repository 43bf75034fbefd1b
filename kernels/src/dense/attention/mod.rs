//! Causal softmax attention with grouped key and value heads: the mixer of the teacher, and of the attention layers of
//! a hybrid.
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

use crate::documents::DocumentStarts;
use crate::profile::{Kind, timed};

/// Gradients to queries, keys and values.
pub type Gradients<B> = (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>);

/// A window of attention: each token sees only the last tokens, and the first ones, called sinks. A model that was
/// trained without a window needs the sinks to stay stable (StreamingLLM, arXiv 2309.17453). Position `i` attends to
/// `j` if `j <= i`, and `i - j < window` or `j < sinks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// The number of last tokens, the token itself included. At least 1.
    pub window: usize,
    /// The number of first tokens.
    pub sinks: usize,
}

impl Window {
    /// The most tokens that one attends to.
    pub fn tokens(self) -> usize {
        self.window.saturating_add(self.sinks)
    }

    /// The window itself, or `None` if it hides nothing in a sequence of `t` tokens.
    pub fn within(self, t: usize) -> Option<Self> {
        (t > self.tokens()).then_some(self)
    }
}

/// Which keys a query sees, if it does not see all keys before it. A `Window`, or an optional one, converts to this by
/// `into`.
#[derive(Debug, Clone)]
pub struct Visible<B: Backend> {
    /// If given, only the keys of this window.
    pub window: Option<Window>,
    /// If given, only the keys of the query's own document: position `i` attends to `j` only if `j` is not before the
    /// start of the document of `i`. The sinks of a window are then the first tokens of each document, and there must
    /// be as many queries as keys.
    pub documents: Option<DocumentStarts<B>>,
}

impl<B: Backend> From<Option<Window>> for Visible<B> {
    fn from(window: Option<Window>) -> Self {
        Self {
            window,
            documents: None,
        }
    }
}

/// Each query sees all keys before it.
impl<B: Backend> Default for Visible<B> {
    fn default() -> Self {
        None::<Window>.into()
    }
}

/// What the forward pass saves for the backward pass, on backends whose kernels use it.
#[derive(Debug, Clone)]
pub struct Saved<B: Backend> {
    /// The outputs, `[b, l, h, p]`.
    pub y: Tensor<B, 4>,
    /// The logarithms of the sums of the scores' exponentials, `[b, h, l]` in f32.
    pub lse: Tensor<B, 3>,
}

/// The op, as backends compute it. The default bodies are the reference. It holds the attention weights,
/// `[b, h, l, t]`; if there is a window and there are no documents, it cuts the sequence into blocks and holds the
/// weights of one block.
pub trait Attention: Backend {
    /// See [`attention_within`].
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        reference::forward(q, k, v, visible)
    }

    /// [`Attention::attention_forward`], and what its backward pass reads beside the inputs.
    fn attention_forward_saving(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> (Tensor<Self, 4>, Option<Saved<Self>>) {
        (Self::attention_forward(q, k, v, visible), None)
    }

    /// Gradients of [`Attention::attention_forward`] to queries, keys and values, from `dy [b, l, h, p]`. `saved`
    /// is from [`Attention::attention_forward_saving`] with the same inputs; without it the reference is taken.
    fn attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        _saved: Option<Saved<Self>>,
        dy: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Gradients<Self> {
        reference::backward(q, k, v, dy, visible)
    }

    /// See [`attention_matrix_within`].
    fn attention_matrix(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        reference::matrix(q, k, visible)
    }
}

by_default!(Attention for ndarray);

/// Queries `[b, l, h, p]`, which are the last `l` of `t` positions; keys and values `[b, t, g, p]`
/// with `g` dividing `h` (head `i` reads group `i / (h / g)`); to `[b, l, h, p]`. Scores are divided
/// by `sqrt(p)`; the softmax is f32 for half-precision inputs.
///
/// On CubeCL backends, but for f64, the passes take memory for their outputs and for two numbers a query and head,
/// whatever the lengths. On `Flex` in f32 they also hold 64 rows of the weights of each head that is being computed, and in
/// the backward pass as many of the weights' gradients. Elsewhere they hold the weights, `[b, h, l, t]` in f32.
///
/// # Panics
/// If the shapes do not fit together as above, or the dtypes differ.
pub fn attention<B: Attention>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    attention_within(q, k, v, None::<Window>)
}

/// [`attention`] in which each query sees only the keys that are `visible`: a window, or a [`Visible`]. Keys behind the
/// sinks may be absent, as in a cache that holds the sinks and the last tokens: the rule counts positions among the
/// keys that are given. Within a window, time and memory are linear in the length; with a window and documents, they
/// are quadratic in the lengths of the documents.
///
/// # Panics
/// As [`attention`], if the window is 0, and if there are documents and not as many queries as keys and starts.
pub fn attention_within<B: Attention>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: impl Into<Visible<B>>,
) -> Tensor<B, 4> {
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
    let visible = checked(visible.into(), &q, &k);
    timed(Kind::Attention, || B::attention_forward(q, k, v, visible))
}

/// The softmaxed weights of [`attention`], `[b, h, l, t]`; f32 for half-precision inputs.
///
/// # Panics
/// If the shapes do not fit together as in [`attention`], or the dtypes differ.
pub fn attention_matrix<B: Attention>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 4> {
    attention_matrix_within(q, k, None::<Window>)
}

/// The softmaxed weights of [`attention_within`], `[b, h, l, t]`; f32 for half-precision inputs.
///
/// # Panics
/// As [`attention_within`].
pub fn attention_matrix_within<B: Attention>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    visible: impl Into<Visible<B>>,
) -> Tensor<B, 4> {
    check(&q, &k);
    let visible = checked(visible.into(), &q, &k);
    timed(Kind::Attention, || B::attention_matrix(q, k, visible))
}

/// Checks the arguments, and returns `visible` without its window if that hides no key.
fn checked<B: Backend>(visible: Visible<B>, q: &Tensor<B, 4>, k: &Tensor<B, 4>) -> Visible<B> {
    let Visible { window, documents } = visible;
    if let Some(window) = window {
        assert!(window.window > 0, "attention: a window must not be empty");
    }
    let ([b, l, _, _], [_, t, _, _]) = (q.dims(), k.dims());
    if let Some(documents) = &documents {
        assert_eq!(
            l, t,
            "attention: with documents there must be as many queries as keys"
        );
        documents.check("attention", [b, l]);
    }
    Visible {
        window: window.and_then(|window| window.within(t)),
        documents,
    }
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
