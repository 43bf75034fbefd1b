//! Phi's attention: the teacher's mixer, and the hybrid's in the layers that keep it.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::attention::step::NewToken;
use kernels::{AttentionParts, KernelBackend};

use crate::config::AttentionConfig;
use crate::init::Init;
use crate::layers::Linear;
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
    /// The first three in one, where they are [fused](Self::fuse).
    qkv_proj: Option<Linear<B>>,
    n_heads: usize,
    n_kv_heads: usize,
    rotary_dim: usize,
    rope_theta: f64,
}

/// Queries `[b, l, h, p]`, keys and values `[b, l, g, p]`.
type QueriesKeysValues<B> = (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>);

impl<B: Backend> PhiAttention<B> {
    pub(crate) fn new(init: &mut Init<B>, config: &AttentionConfig, d_model: usize) -> Self {
        let d_kv = config.n_kv_heads * (d_model / config.n_heads);
        Self {
            q_proj: Linear::phi(init, d_model, d_model),
            k_proj: Linear::phi(init, d_kv, d_model),
            v_proj: Linear::phi(init, d_kv, d_model),
            dense: Linear::phi(init, d_model, d_model),
            qkv_proj: None,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            rotary_dim: config.rotary_dim(d_model),
            rope_theta: config.rope_theta,
        }
    }

    /// From now on queries, keys and values come from one product, whose weight has the rows of all three: a
    /// GPU multiplies faster with one wide matrix than with three. Not for a network that is trained.
    pub(crate) fn fuse(&mut self) {
        self.qkv_proj = Linear::stack([&mut self.q_proj, &mut self.k_proj, &mut self.v_proj]);
    }

    /// What decoding starts from.
    pub fn new_state(&self) -> KvCache<B> {
        KvCache::default()
    }

    /// Of the keys, and of the values, that are cached for `tokens` tokens of one sequence.
    pub(crate) fn cache_shape(&self, tokens: usize) -> [usize; 4] {
        let d_kv = self.k_proj.d_out();
        [1, tokens, self.n_kv_heads, d_kv / self.n_kv_heads]
    }
}

impl<B: KernelBackend> PhiAttention<B> {
    /// `u [b, l, d_model]` to the same shape.
    pub fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        let (q, k, v) = self.project(u, 0);
        self.merge(kernels::attention(q, k, v))
    }

    /// `residual + forward(u)`, all `[b, l, d_model]`.
    pub(crate) fn forward_onto(&self, residual: Tensor<B, 3>, u: Tensor<B, 3>) -> Tensor<B, 3> {
        let (q, k, v) = self.project(u, 0);
        let y_blhp = kernels::attention(q, k, v);
        let [b, l, h, p] = y_blhp.dims();
        self.dense
            .forward_onto(residual, y_blhp.reshape([b, l, h * p]))
    }

    /// The softmaxed attention of every head, `[b, h, l, l]`; in f32 for half-precision input.
    pub fn attention_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        let AttentionParts { q, k } = self.attention_parts(u);
        kernels::attention_matrix(q, k)
    }

    /// The output and the attention matrix, from one projection.
    pub fn forward_with_matrix(&self, u: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let (q, k, v) = self.project(u, 0);
        let matrix = kernels::attention_matrix(q.clone(), k.clone());
        (self.merge(kernels::attention(q, k, v)), matrix)
    }

    /// What the attention matrix is made of, for [`kernels::mixing_distance`].
    pub fn attention_parts(&self, u: Tensor<B, 3>) -> AttentionParts<B> {
        let [b, l, d_model] = u.dims();
        let p = d_model / self.n_heads;
        let rotary = Rotary::new(self.rotary_dim, self.rope_theta, 0, l, &u.device());
        if let Some(qkv_proj) = &self.qkv_proj {
            let heads = self.n_heads + self.n_kv_heads;
            let both = qkv_proj.forward_rows(u, 0, heads * p);
            let both = rotary.rotate_heads(both.reshape([b, l, heads, p]), heads);
            return AttentionParts {
                q: both.clone().narrow(2, 0, self.n_heads),
                k: both.narrow(2, self.n_heads, self.n_kv_heads),
            };
        }
        let q = self
            .q_proj
            .forward(u.clone())
            .reshape([b, l, self.n_heads, p]);
        let k = self.k_proj.forward(u).reshape([b, l, self.n_kv_heads, p]);
        AttentionParts {
            q: rotary.rotate(q),
            k: rotary.rotate(k),
        }
    }

    /// The output and what its attention matrix is made of, from one projection.
    pub fn forward_with_parts(&self, u: Tensor<B, 3>) -> (Tensor<B, 3>, AttentionParts<B>) {
        let (q, k, v) = self.project(u, 0);
        let output = self.merge(kernels::attention(q.clone(), k.clone(), v));
        (output, AttentionParts { q, k })
    }

    /// `u [b, l, d_model]`, the tokens after those in `cache`, which they join.
    pub fn prefill(&self, u: Tensor<B, 3>, cache: &mut KvCache<B>) -> Tensor<B, 3> {
        let (q, k, v) = self.project(u, cache.len());
        let (k, v) = cache.append(k, v);
        self.merge(kernels::attention(q, k, v))
    }

    /// What stands between the projections for one token after those in `cache`: queries `[b, h * p]`, keys
    /// and values `[b, g * p]` to `[b, h * p]`.
    pub(crate) fn attend(
        &self,
        q: Tensor<B, 2>,
        k: Tensor<B, 2>,
        v: Tensor<B, 2>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let rotary = Rotary::new(
            self.rotary_dim,
            self.rope_theta,
            cache.len(),
            1,
            &q.device(),
        );
        let Rotary { cos, sin } = rotary;
        cache.step(NewToken { q, k, v, cos, sin }, self.n_heads)
    }

    /// [`attend`](Self::attend) with a row a cache, each at its own position. A row that is not `occupied`
    /// gives zeros and caches nothing.
    pub(crate) fn attend_rows(
        &self,
        [q, k, v]: [Tensor<B, 2>; 3],
        caches: &mut [KvCache<B>],
        occupied: &[bool],
    ) -> Tensor<B, 2> {
        let row = |x: &Tensor<B, 2>, i: usize| x.clone().narrow(0, i, 1);
        let rows = caches.iter_mut().zip(occupied).enumerate();
        let attended = rows.map(|(i, (cache, occupied))| match occupied {
            true => self.attend(row(&q, i), row(&k, i), row(&v, i), cache),
            false => row(&q, i).zeros_like(),
        });
        Tensor::cat(attended.collect(), 0)
    }

    fn project(&self, u: Tensor<B, 3>, position: usize) -> QueriesKeysValues<B> {
        let [b, l, d_model] = u.dims();
        let p = d_model / self.n_heads;
        let heads = |x: Tensor<B, 3>, n: usize| x.reshape([b, l, n, p]);
        let rotary = Rotary::new(self.rotary_dim, self.rope_theta, position, l, &u.device());
        if let Some(qkv_proj) = &self.qkv_proj {
            let (h, g) = (self.n_heads, self.n_kv_heads);
            let all = rotary.rotate_heads(heads(qkv_proj.forward(u), h + 2 * g), h + g);
            let part = |start, heads| all.clone().narrow(2, start, heads);
            return (part(0, h), part(h, g), part(h + g, g));
        }
        let q = heads(self.q_proj.forward(u.clone()), self.n_heads);
        let k = heads(self.k_proj.forward(u.clone()), self.n_kv_heads);
        let v = heads(self.v_proj.forward(u), self.n_kv_heads);
        (rotary.rotate(q), rotary.rotate(k), v)
    }

    /// `[b, l, h, p]` through the output projection, `[b, l, d_model]`.
    fn merge(&self, y_blhp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, l, h, p] = y_blhp.dims();
        self.dense.forward(y_blhp.reshape([b, l, h * p]))
    }
}
