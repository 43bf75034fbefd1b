//! Attention of one new token: what decoding does between the projections.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dense::attention::{Attention, Window};
use crate::dense::rotary::Rotary;
use crate::dtype::assert_one_width;

/// A token's projections and its angles.
#[derive(Clone, Debug)]
pub struct NewToken<B: Backend> {
    /// Queries, `[b, h * p]`.
    pub q: Tensor<B, 2>,
    /// Keys, `[b, g * p]`.
    pub k: Tensor<B, 2>,
    /// Values, `[b, g * p]`.
    pub v: Tensor<B, 2>,
    /// The cosines of the token's position and of others, `[n, r]`; see [`rotary`](crate::dense::rotary::rotary()).
    pub cos: Tensor<B, 2>,
    /// The sines, as `cos`.
    pub sin: Tensor<B, 2>,
    /// The row of `cos` and `sin` for the token's position. The rows after it are for the tokens of steps that the
    /// device repeats by itself.
    pub angle: usize,
}

/// The rotated keys and the values of earlier tokens, in tensors that may have room for more.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    /// `[b, capacity, g, p]`. The first `len + gap.len` positions are in use: all are tokens, except those in the gap.
    pub keys: Tensor<B, 4>,
    /// As the keys.
    pub values: Tensor<B, 4>,
    /// The number of tokens.
    pub len: usize,
    /// The positions that a window has left behind.
    pub gap: Gap,
}

/// Unused positions of a [`Cache`] between the tokens. With a gap, the oldest tokens can leave the cache without a move
/// of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The first of them: how many tokens there are before.
    pub start: usize,
    /// How many they are.
    pub len: usize,
}

impl<B: Backend> Cache<B> {
    /// Keys and values `[b, len, g, p]`, all of them tokens.
    ///
    /// # Panics
    /// If they differ in shape.
    pub fn of(keys: Tensor<B, 4>, values: Tensor<B, 4>) -> Self {
        assert_eq!(
            keys.dims(),
            values.dims(),
            "Cache: there must be as many values as keys"
        );
        Self {
            len: keys.dims()[1],
            keys,
            values,
            gap: Gap::default(),
        }
    }

    /// The keys and values of the tokens alone, `[b, len, g, p]`.
    pub fn filled(&self) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let Gap { start, len } = self.gap;
        let filled = |x: &Tensor<B, 4>| {
            let part = |start, n| x.clone().narrow(1, start, n);
            if x.dims()[1] == self.len {
                x.clone()
            } else if len == 0 {
                part(0, self.len)
            } else if start == 0 {
                part(len, self.len)
            } else {
                let later = part(start + len, self.len - start);
                Tensor::cat(vec![part(0, start), later], 1)
            }
        };
        (filled(&self.keys), filled(&self.values))
    }

    /// How many steps within `window`, from now on, make the same launches on the same memory, so that a device can
    /// repeat the first of them. The number ends where the cache is full, or where the window begins to drop tokens.
    pub fn steps_alike(&self, window: Option<Window>) -> usize {
        let room = self.keys.dims()[1] - (self.len + self.gap.len);
        match window {
            Some(window) if self.len < window.tokens() => room.min(window.tokens() - self.len),
            _ => room,
        }
    }

    /// The cache after a step within `window` that the device has repeated by itself.
    pub fn advanced(self, window: Option<Window>) -> Self {
        let left = match window.and_then(|window| window.within(self.len + 1)) {
            Some(window) => self.left(reference::before(window)),
            None => self,
        };
        Self {
            len: left.len + 1,
            ..left
        }
    }

    /// [`kept`](Self::kept) without a move, where the gap is behind the sinks.
    pub(crate) fn left(mut self, window: Window) -> Self {
        let is_behind_sinks = self.gap.len == 0 || self.gap.start == window.sinks;
        if self.len <= window.tokens() || !is_behind_sinks {
            return self.kept(window);
        }
        self.gap = Gap {
            start: window.sinks,
            len: self.gap.len + self.len - window.tokens(),
        };
        self.len = window.tokens();
        self
    }

    /// The part of the cache that later tokens can see within `window`: the sinks and the last tokens,
    /// `window.tokens()` in all, or fewer if the cache has fewer.
    ///
    /// # Panics
    /// If a window of no tokens leaves nothing.
    pub fn kept(self, window: Window) -> Self {
        if self.len <= window.tokens() {
            return self;
        }
        let (keys, values) = self.filled();
        let places = [(0, window.sinks), (self.len - window.window, window.window)];
        let kept = |x: Tensor<B, 4>| {
            let parts = places.into_iter().filter(|(_, n)| *n > 0);
            let parts = parts.map(|(start, n)| x.clone().narrow(1, start, n));
            Tensor::cat(parts.collect(), 1)
        };
        Self::of(kept(keys), kept(values))
    }
}

/// The op, as backends compute it.
pub trait AttentionStep: Attention + Rotary {
    /// See [`attention_step`]. No gradient passes through it.
    fn attention_step(
        token: NewToken<Self>,
        cache: Option<Cache<Self>>,
        h: usize,
    ) -> (Tensor<Self, 2>, Cache<Self>) {
        reference::step(token, cache, h)
    }

    /// See [`attention_step_within`]: the token sees only those tokens that `window` allows.
    fn windowed_attention_step(
        token: NewToken<Self>,
        cache: Cache<Self>,
        h: usize,
        window: Window,
    ) -> (Tensor<Self, 2>, Cache<Self>) {
        reference::windowed_step(token, cache, h, window)
    }
}

by_default!(AttentionStep for ndarray, flex, autodiff);

/// Rotates the new token's queries and keys, appends its key and value to `cache`, and computes its attention over all
/// tokens: `[b, h * p]` in the dtype of the queries, and the new cache. The cache keeps its dtype; without a cache, a
/// new one with the dtype of the keys is made.
///
/// A backend may write to the memory of the cache if nothing else holds it, and may reserve room for later tokens.
///
/// # Panics
/// If the shapes do not fit together for `h` heads, or some of token and cache are f64 and others not.
pub fn attention_step<B: AttentionStep>(
    token: NewToken<B>,
    cache: Option<Cache<B>>,
    h: usize,
) -> (Tensor<B, 2>, Cache<B>) {
    attention_step_within(token, cache, h, None)
}

/// [`attention_step`] that attends within `window` if there is one. The cache then holds no more than the sinks and
/// the keys of the window, in the order of their positions, so that its size does not grow beyond that.
///
/// # Panics
/// As `attention_step`, and if the window is 0.
pub fn attention_step_within<B: AttentionStep>(
    token: NewToken<B>,
    cache: Option<Cache<B>>,
    h: usize,
    window: Option<Window>,
) -> (Tensor<B, 2>, Cache<B>) {
    let ([b, width], [_, d_kv], [n, r]) = (token.q.dims(), token.k.dims(), token.cos.dims());
    assert!(
        h > 0 && width.is_multiple_of(h),
        "attention_step: {width} queries are not those of {h} heads"
    );
    let p = width / h;
    let mut dtypes = vec![token.q.dtype(), token.k.dtype(), token.v.dtype()];
    if let Some(cache) = &cache {
        dtypes.extend([cache.keys.dtype(), cache.values.dtype()]);
    }
    assert_one_width("attention_step", &dtypes);
    assert!(
        d_kv.is_multiple_of(p) && h.is_multiple_of(d_kv / p),
        "attention_step: {d_kv} keys are not groups of {p} that divide {h} heads"
    );
    assert_eq!(
        token.k.dims(),
        [b, d_kv],
        "attention_step: keys must be [b, g * p]"
    );
    assert_eq!(
        token.v.dims(),
        [b, d_kv],
        "attention_step: values must be [b, g * p]"
    );
    assert!(
        token.angle < n,
        "attention_step: there are {n} rows of angles, and row {} is asked for",
        token.angle
    );
    assert_eq!(
        token.sin.dims(),
        [n, r],
        "attention_step: sin must be [n, r]"
    );
    assert!(
        2 * r <= p,
        "attention_step: {r} pairs do not fit in {p} dimensions"
    );
    if let Some(cache) = &cache {
        let [_, capacity, _, _] = cache.keys.dims();
        let shape = [b, capacity, d_kv / p, p];
        assert_eq!(
            cache.keys.dims(),
            shape,
            "attention_step: keys must be [b, t, g, p]"
        );
        assert_eq!(
            cache.values.dims(),
            shape,
            "attention_step: values must be [b, t, g, p]"
        );
        assert!(
            cache.len + cache.gap.len <= capacity && cache.gap.start <= cache.len,
            "attention_step: the cache is shorter than its tokens"
        );
    }
    match (window, cache) {
        (Some(window), Some(cache)) if window.within(cache.len + 1).is_some() => {
            assert!(
                window.window > 0,
                "attention_step: a window must not be empty"
            );
            B::windowed_attention_step(token, cache, h, window)
        }
        (_, cache) => B::attention_step(token, cache, h),
    }
}
