//! The definition, by the ops of the same backend.

use burn::tensor::Tensor;

use super::{AttentionStep, Cache, NewToken};
use crate::dense::attention::{Visible, Window};
use crate::dtype::narrow;

/// See [`attention_step`](super::attention_step).
pub fn step<B: AttentionStep>(
    token: NewToken<B>,
    cache: Option<Cache<B>>,
    h: usize,
) -> (Tensor<B, 2>, Cache<B>) {
    let ([b, width], [_, d_kv]) = (token.q.dims(), token.k.dims());
    let (p, dtype) = (width / h, token.q.dtype());
    let heads = |x: Tensor<B, 2>, n: usize| x.reshape([b, 1, n, p]);
    let [cos, sin] = [token.cos, token.sin].map(|x| narrow(x.narrow(0, token.angle, 1), dtype));
    let q = B::rotary_forward(heads(token.q, h), cos.clone(), sin.clone());
    let k = B::rotary_forward(heads(token.k, d_kv / p), cos, sin);
    let v = heads(token.v, d_kv / p);
    let (keys, values) = match cache {
        None => (k, v),
        Some(cache) => {
            let (keys, values) = cache.filled();
            let cached = keys.dtype();
            let join = |earlier, new| Tensor::cat(vec![earlier, narrow(new, cached)], 1);
            (join(keys, k), join(values, v))
        }
    };
    let q = narrow(q, keys.dtype());
    let y = B::attention_forward(q, keys.clone(), values.clone(), Visible::default());
    let cache = Cache::of(keys, values);
    (narrow(y.reshape([b, width]), dtype), cache)
}

/// The window over the tokens before a new token: one token smaller, because the new token takes one place.
pub(super) fn before(window: Window) -> Window {
    Window {
        window: window.window - 1,
        ..window
    }
}

/// See [`attention_step_within`](super::attention_step_within): the oldest tokens leave the cache first, after which
/// the new one sees all that it holds.
pub fn windowed_step<B: AttentionStep>(
    token: NewToken<B>,
    cache: Cache<B>,
    h: usize,
    window: Window,
) -> (Tensor<B, 2>, Cache<B>) {
    let before = before(window);
    let kept = (before.tokens() > 0).then(|| cache.kept(before));
    step(token, kept, h)
}
