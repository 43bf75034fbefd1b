//! The definition, by the ops of the same backend.

use burn::tensor::{DType, Tensor};

use super::{Cache, NewToken};
use crate::KernelBackend;

/// See [`attention_step`](super::attention_step).
pub fn step<B: KernelBackend>(
    token: NewToken<B>,
    cache: Option<Cache<B>>,
    h: usize,
) -> (Tensor<B, 2>, Cache<B>) {
    let ([b, width], [_, d_kv]) = (token.q.dims(), token.k.dims());
    let (p, dtype) = (width / h, token.q.dtype());
    let heads = |x: Tensor<B, 2>, n: usize| x.reshape([b, 1, n, p]);
    let (cos, sin) = (to_dtype(token.cos, dtype), to_dtype(token.sin, dtype));
    let q = B::rotary_forward(heads(token.q, h), cos.clone(), sin.clone());
    let k = B::rotary_forward(heads(token.k, d_kv / p), cos, sin);
    let v = heads(token.v, d_kv / p);
    let (keys, values) = match cache {
        None => (k, v),
        Some(cache) => {
            let (keys, values) = cache.filled();
            let cached = keys.dtype();
            let join = |earlier, new| Tensor::cat(vec![earlier, to_dtype(new, cached)], 1);
            (join(keys, k), join(values, v))
        }
    };
    let q = to_dtype(q, keys.dtype());
    let y = B::attention_forward(q, keys.clone(), values.clone());
    let len = keys.dims()[1];
    let cache = Cache { keys, values, len };
    (to_dtype(y.reshape([b, width]), dtype), cache)
}

fn to_dtype<B: KernelBackend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
