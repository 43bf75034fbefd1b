//! Phi's attention: the teacher's mixer, and the hybrid's in the layers that keep it.

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};
use kernels::KernelBackend;

use crate::config::AttentionConfig;
use crate::init::Init;
use crate::layers::Linear;
use crate::precision::{to_dtype, widen};
use crate::rotary::Rotary;
use crate::state::KvCache;

/// Causal self-attention with partial rotary embedding and grouped key and value heads.
#[derive(Module, Debug)]
pub struct PhiAttention<B: Backend> {
    /// `d_model` to `h * p`.
    pub q_proj: Linear<B>,
    /// `d_model` to `g * p`, `g` the key and value heads.
    pub k_proj: Linear<B>,
    /// `d_model` to `g * p`.
    pub v_proj: Linear<B>,
    /// `h * p` to `d_model`.
    pub dense: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    rotary_dim: usize,
    rope_theta: f64,
}

/// Queries `[b, h, l, p]`, keys and values `[b, g, l, p]`.
type QueriesKeysValues<B> = (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>);

impl<B: Backend> PhiAttention<B> {
    pub(crate) fn new(init: &mut Init<B>, config: &AttentionConfig, d_model: usize) -> Self {
        let d_kv = config.n_kv_heads * (d_model / config.n_heads);
        Self {
            q_proj: Linear::phi(init, d_model, d_model),
            k_proj: Linear::phi(init, d_kv, d_model),
            v_proj: Linear::phi(init, d_kv, d_model),
            dense: Linear::phi(init, d_model, d_model),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            rotary_dim: config.rotary_dim(d_model),
            rope_theta: config.rope_theta,
        }
    }

    /// What decoding starts from.
    pub fn new_state(&self) -> KvCache<B> {
        KvCache::default()
    }
}

impl<B: KernelBackend> PhiAttention<B> {
    /// `u [b, l, d_model]` to the same shape.
    pub fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        let (q, k, v) = self.project(u, 0);
        self.merge(attend(q, k, v))
    }

    /// The softmaxed attention of every head, `[b, h, l, l]`; in f32 for half-precision input.
    pub fn attention_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        let (q, k, _) = self.project(u, 0);
        attention_weights(q, k)
    }

    /// The output and the attention matrix, for the price of the matrix.
    pub fn forward_with_matrix(&self, u: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let (q, k, v) = self.project(u, 0);
        let dtype = v.dtype();
        let weights = attention_weights(q, k);
        let v = per_head(v, self.n_heads);
        let output = to_dtype(weights.clone(), dtype).matmul(v);
        (self.merge(output), weights)
    }

    /// `u [b, l, d_model]`, the tokens after those in `cache`, which they join.
    pub fn prefill(&self, u: Tensor<B, 3>, cache: &mut KvCache<B>) -> Tensor<B, 3> {
        let (q, k, v) = self.project(u, cache.len());
        let (k, v) = cache.append(k, v);
        self.merge(attend(q, k, v))
    }

    fn project(&self, u: Tensor<B, 3>, position: usize) -> QueriesKeysValues<B> {
        let [b, l, d_model] = u.dims();
        let p = d_model / self.n_heads;
        let heads = |x: Tensor<B, 3>, n: usize| x.reshape([b, l, n, p]);
        let rotary = Rotary::new(self.rotary_dim, self.rope_theta, position, l, &u.device());
        let q = heads(self.q_proj.forward(u.clone()), self.n_heads);
        let k = heads(self.k_proj.forward(u.clone()), self.n_kv_heads);
        let v = heads(self.v_proj.forward(u), self.n_kv_heads);
        (
            rotary.rotate(q).swap_dims(1, 2),
            rotary.rotate(k).swap_dims(1, 2),
            v.swap_dims(1, 2),
        )
    }

    /// `[b, h, l, p]` back to `[b, l, d_model]`, through the output projection.
    fn merge(&self, y_bhlp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, h, l, p] = y_bhlp.dims();
        self.dense
            .forward(y_bhlp.swap_dims(1, 2).reshape([b, l, h * p]))
    }
}

/// Causal attention: queries `[b, h, l, p]`, the last `l` of `t` positions; keys and values
/// `[b, g, t, p]` with `g` dividing `h`; to `[b, h, l, p]`.
fn attend<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    let (h, dtype) = (q.dims()[1], v.dtype());
    let weights = to_dtype(attention_weights(q, k), dtype);
    weights.matmul(per_head(v, h))
}

/// `softmax(q k^T / sqrt(p))` under the causal mask: `[b, h, l, t]`, in f32 for half precision.
fn attention_weights<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, h, l, p] = q.dims();
    let t = k.dims()[2];
    let k = per_head(k, h);
    let scores = widen((q / (p as f64).sqrt()).matmul(k.swap_dims(2, 3)));
    let scores = match l {
        1 => scores, // one query, the last position, sees every key
        _ => {
            let future = Tensor::<B, 2, Bool>::tril_mask([l, t], (t - l) as i64, &scores.device());
            let future = future.reshape([1, 1, l, t]).expand([b, h, l, t]);
            scores.mask_fill(future, f32::NEG_INFINITY)
        }
    };
    softmax(scores, 3)
}

/// `[b, g, t, p]` to `[b, h, t, p]`: query head `i` reads head `i / (h / g)`.
fn per_head<B: Backend>(x: Tensor<B, 4>, h: usize) -> Tensor<B, 4> {
    let [b, g, t, p] = x.dims();
    if g == h {
        return x;
    }
    x.reshape([b, g, 1, t, p])
        .expand([b, g, h / g, t, p])
        .reshape([b, h, t, p])
}
