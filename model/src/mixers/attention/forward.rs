//! From tokens to queries, keys and values, and from these to the output.

use burn::tensor::Tensor;
use kernels::decode::attention_step::NewToken;
use kernels::{AttentionParts, DocumentStarts, KernelBackend, Visible, Window};

use super::{ANGLES, Attention, KvCache};
use crate::layers::Norm;
use crate::mixers::rotary::{Positions, Rotary};
use crate::sequences::Sequences;

/// Queries `[b, l, h, p]`, keys and values `[b, l, g, p]`.
type QueriesKeysValues<B> = (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>);

impl<B: KernelBackend> Attention<B> {
    /// The angles of rows of `l` tokens.
    fn rotary(&self, positions: Positions<'_, B>, l: usize, device: &B::Device) -> Rotary<B> {
        let (theta, scaling) = (self.config.rope_theta, self.config.rope_scaling);
        Rotary::at(self.rotary_dim, theta, scaling, positions, l, device)
    }

    /// The heads of one product `[b, l, n, p]`, of which queries and keys, the first `h + g`, are normalised where
    /// there are norms, and rotated.
    fn turned(&self, heads: Tensor<B, 4>, rotary: &Rotary<B>) -> Tensor<B, 4> {
        let (h, g) = (self.config.n_heads, self.config.n_kv_heads);
        let heads = match (&self.q_norm, &self.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                let part = |start, n| heads.clone().narrow(2, start, n);
                let mut parts = vec![q_norm.forward(part(0, h)), k_norm.forward(part(h, g))];
                let rest = heads.dims()[2] - h - g;
                if rest > 0 {
                    parts.push(part(h + g, rest));
                }
                Tensor::cat(parts, 2)
            }
            _ => heads,
        };
        rotary.rotate_heads(heads, h + g)
    }

    /// Queries and keys.
    pub(super) fn matrix_parts(&self, sequences: Sequences<B>) -> AttentionParts<B> {
        let Sequences { u, documents } = sequences;
        let [b, l, _] = u.dims();
        let (h, g, p) = (self.config.n_heads, self.config.n_kv_heads, self.p);
        let window = self.config.window;
        let rotary = self.rotary(Positions::of(&documents), l, &u.device());
        if let Some(qkv_proj) = &self.qkv_proj {
            let both = qkv_proj.forward_rows(u, 0, (h + g) * p);
            let both = self.turned(both.reshape([b, l, h + g, p]), &rotary);
            return AttentionParts {
                q: both.clone().narrow(2, 0, h),
                k: both.narrow(2, h, g),
                window,
                documents,
            };
        }
        let q = self.q_proj.forward(u.clone()).reshape([b, l, h, p]);
        let k = self.k_proj.forward(u).reshape([b, l, g, p]);
        AttentionParts {
            q: rotary.rotate(normed(&self.q_norm, q)),
            k: rotary.rotate(normed(&self.k_norm, k)),
            window,
            documents,
        }
    }

    /// What stands between the projections for one token after those in `cache`: queries `[b, h * p]`, keys
    /// and values `[b, g * p]` to `[b, h * p]`.
    pub(super) fn attend(
        &self,
        q: Tensor<B, 2>,
        k: Tensor<B, 2>,
        v: Tensor<B, 2>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let angle = cache.position() % ANGLES;
        let positions = Positions::From(cache.position() - angle);
        let Rotary { cos, sin, .. } = self.rotary(positions, ANGLES, &q.device());
        let (q, k) = (normed_step(&self.q_norm, q), normed_step(&self.k_norm, k));
        let token = NewToken {
            q,
            k,
            v,
            cos,
            sin,
            angle,
        };
        cache.step(token, self.config.n_heads, self.config.window)
    }

    /// Queries, keys and values of the tokens `u [b, l, d_model]`.
    pub(super) fn project(
        &self,
        u: Tensor<B, 3>,
        positions: Positions<'_, B>,
    ) -> QueriesKeysValues<B> {
        let [b, l, _] = u.dims();
        let (h, g, p) = (self.config.n_heads, self.config.n_kv_heads, self.p);
        let heads = |x: Tensor<B, 3>, n: usize| x.reshape([b, l, n, p]);
        let rotary = self.rotary(positions, l, &u.device());
        if let Some(qkv_proj) = &self.qkv_proj {
            let all = self.turned(heads(qkv_proj.forward(u), h + 2 * g), &rotary);
            let all = all.reshape([b, l, (h + 2 * g) * p]);
            let [q, k, v] = kernels::split_columns(all, [h * p, g * p, g * p]);
            return (heads(q, h), heads(k, g), heads(v, g));
        }
        let q = heads(self.q_proj.forward(u.clone()), h);
        let k = heads(self.k_proj.forward(u.clone()), g);
        let v = heads(self.v_proj.forward(u), g);
        let (q, k) = (normed(&self.q_norm, q), normed(&self.k_norm, k));
        (rotary.rotate(q), rotary.rotate(k), v)
    }

    /// What queries see in rows of these documents.
    pub(super) fn visible(&self, documents: Option<DocumentStarts<B>>) -> Visible<B> {
        Visible {
            window: self.config.window,
            documents,
        }
    }

    /// What the output projection reads: `[b, l, h, p]`.
    pub(crate) fn context(&self, sequences: impl Into<Sequences<B>>) -> Tensor<B, 4> {
        let Sequences { u, documents } = sequences.into();
        let (q, k, v) = self.project(u, Positions::of(&documents));
        kernels::attention_within(q, k, v, self.visible(documents))
    }

    /// [`context`](Self::context), in which no token sees more than `window`; and as it is.
    pub(crate) fn contexts(&self, u: Tensor<B, 3>, window: Window) -> [Tensor<B, 4>; 2] {
        let (q, k, v) = self.project(u, Positions::of(&None));
        let narrowed = self.narrowed(window);
        let within = kernels::attention_within(q.clone(), k.clone(), v.clone(), narrowed);
        [
            within,
            kernels::attention_within(q, k, v, self.config.window),
        ]
    }

    /// The narrower of its own window and `window`.
    pub(super) fn narrowed(&self, window: Window) -> Option<Window> {
        let own = self.config.window;
        match own {
            Some(own) if own.window <= window.window => Some(own),
            _ => Some(window),
        }
    }

    /// `residual [b, l, d_model]` and `y_blhp` through the output projection.
    pub(crate) fn merge_onto(&self, residual: Tensor<B, 3>, y_blhp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, l, h, p] = y_blhp.dims();
        self.dense
            .forward_onto(residual, y_blhp.reshape([b, l, h * p]))
    }

    /// `[b, l, h, p]` through the output projection, `[b, l, d_model]`.
    pub(crate) fn merge(&self, y_blhp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, l, h, p] = y_blhp.dims();
        self.dense.forward(y_blhp.reshape([b, l, h * p]))
    }
}

/// `x [b, l, heads, p]`, normalised where there is a norm.
fn normed<B: KernelBackend>(norm: &Option<Norm<B>>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

/// The same in a step, `x [b, heads * p]`.
fn normed_step<B: KernelBackend>(norm: &Option<Norm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match norm {
        Some(norm) => {
            let [b, width] = x.dims();
            let p = norm.weight.lazy_shape()[0];
            let heads = norm.rms_norm_of_step(x.reshape([b * width / p, p]));
            heads.reshape([b, width])
        }
        None => x,
    }
}
