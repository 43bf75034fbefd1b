//! The definition, in tensor operations.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor};

use super::{Gradients, Visible, Window};
use crate::documents::DocumentStarts;
use crate::dtype::{narrow, widen};
use crate::groups::{to_groups, to_heads};
use crate::product::product;

/// Queries of a block of attention with a small window, at least.
const MIN_BLOCK: usize = 64;

/// `[b, t, g, p]` to `[b, h, t, p]`.
fn per_head<B: Backend>(x: Tensor<B, 4>, h: usize) -> Tensor<B, 4> {
    to_heads(x, h).swap_dims(1, 2)
}

/// See [`attention_matrix_within`](super::attention_matrix_within).
pub fn matrix<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    visible: impl Into<Visible<B>>,
) -> Tensor<B, 4> {
    let Visible { window, documents } = visible.into();
    let [b, l, h, p] = q.dims();
    let t = k.dims()[1];
    let q = q.swap_dims(1, 2) * (1.0 / (p as f64).sqrt());
    let scores = widen(product(q, per_head(k, h).swap_dims(2, 3)));
    let device = scores.device();
    // Of all sequences or of each: `[1 or b, l, t]`.
    let hide = |scores: Tensor<B, 4>, hidden: Tensor<B, 3, Bool>| {
        let hidden = hidden.unsqueeze_dim::<4>(1).expand([b, h, l, t]);
        scores.mask_fill(hidden, f32::NEG_INFINITY)
    };
    let scores = match l {
        1 => scores, // one query, the last position, has no future
        _ => {
            let future = Tensor::<B, 2, Bool>::tril_mask([l, t], (t - l) as i64, &device);
            hide(scores, future.unsqueeze_dim(0))
        }
    };
    let scores = match &documents {
        None => scores,
        Some(documents) => hide(scores, documents.hidden()),
    };
    let scores = match window {
        None => scores,
        Some(window) => hide(scores, too_old(l, t, window, documents.as_ref(), &device)),
    };
    softmax(scores, 3)
}

/// Which of `t` keys lie before the window of each of the last `l` positions, and are no sinks: `[1, l, t]`, or
/// `[b, l, t]` with documents, each of which has sinks of its own.
fn too_old<B: Backend>(
    l: usize,
    t: usize,
    window: Window,
    documents: Option<&DocumentStarts<B>>,
    device: &B::Device,
) -> Tensor<B, 3, Bool> {
    let range =
        |start: usize, end: usize| Tensor::<B, 1, Int>::arange(start as i64..end as i64, device);
    let columns = range(0, t).reshape([1, 1, t]).expand([1, l, t]);
    let distance = range(t - l, t).reshape([1, l, 1]).expand([1, l, t]) - columns.clone();
    let (places, distance) = match documents {
        None => (columns, distance),
        Some(documents) => {
            let places = documents.places();
            let distance = distance.expand(places.dims());
            (places, distance)
        }
    };
    let is_sink = places.lower_elem(window.sinks as i64);
    distance
        .mask_fill(is_sink, 0)
        .greater_equal_elem(window.window as i64)
}

/// See [`attention_within`](super::attention_within).
pub fn forward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: impl Into<Visible<B>>,
) -> Tensor<B, 4> {
    match visible.into() {
        Visible {
            window: Some(window),
            documents: None,
        } => in_blocks(q, k, v, window),
        visible => weighted(q, k, v, visible),
    }
}

fn weighted<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: Visible<B>,
) -> Tensor<B, 4> {
    let (h, dtype) = (q.dims()[2], v.dtype());
    let weights = narrow(matrix(q, k, visible), dtype);
    product(weights, per_head(v, h)).swap_dims(1, 2)
}

/// The gradients of [`forward`] to queries, keys and values, from `dy [b, l, h, p]`.
pub fn backward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    dy: Tensor<B, 4>,
    visible: impl Into<Visible<B>>,
) -> Gradients<B> {
    match visible.into() {
        Visible {
            window: Some(window),
            documents: None,
        } => gradients_in_blocks(q, k, v, dy, window),
        visible => gradients(q, k, v, dy, visible),
    }
}

/// Half-precision inputs are widened, and their products may be TF32 on NVIDIA GPUs: TF32 holds the inputs as they
/// are, and more digits of the weights and their gradients than half precision does.
///
/// With `P` the weights and `dP = dy v^T`: the scores' gradient is `P (dP - sum of P dP)`, row by row.
fn gradients<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    dy: Tensor<B, 4>,
    visible: Visible<B>,
) -> Gradients<B> {
    let ([_, _, h, p], g, dtype) = (q.dims(), k.dims()[2], q.dtype());
    let weights = matrix(q.clone(), k.clone(), visible);
    let times = if dtype == DType::F32 {
        product
    } else {
        Tensor::matmul
    };
    let (q, dy) = (widen(q).swap_dims(1, 2), widen(dy).swap_dims(1, 2));
    let (k, v) = (widen(per_head(k, h)), widen(per_head(v, h)));
    let dv = times(weights.clone().swap_dims(2, 3), dy.clone());
    let dweights = times(dy, v.swap_dims(2, 3));
    let along = (weights.clone() * dweights.clone()).sum_dim(3);
    let dscores = weights * (dweights - along) * (1.0 / (p as f64).sqrt());
    let dk = times(dscores.clone().swap_dims(2, 3), q);
    let grouped = |x: Tensor<B, 4>| narrow(to_groups(x.swap_dims(1, 2), g), dtype);
    (
        narrow(times(dscores, k).swap_dims(1, 2), dtype),
        grouped(dk),
        grouped(dv),
    )
}

/// Some queries, and the keys that they see.
struct Block {
    /// Queries.
    start: usize,
    len: usize,
    /// Keys that are sinks; they come first.
    sinks: usize,
    /// The keys that follow them: from here to the last query's.
    first: usize,
    end: usize,
}

impl Block {
    /// Blocks as long as the window, for `l` queries and `t` keys.
    fn all(l: usize, t: usize, window: Window) -> impl Iterator<Item = Self> {
        let size = window.window.max(MIN_BLOCK);
        (0..l).step_by(size).map(move |start| {
            let len = size.min(l - start);
            // The first query's place among the keys.
            let place = t - l + start;
            let sinks = window.sinks.min(place);
            Self {
                start,
                len,
                sinks,
                first: (place + 1).saturating_sub(window.window).max(sinks),
                end: place + len,
            }
        })
    }

    fn queries<B: Backend>(&self, x: &Tensor<B, 4>) -> Tensor<B, 4> {
        x.clone().narrow(1, self.start, self.len)
    }

    fn keys<B: Backend>(&self, x: &Tensor<B, 4>) -> Tensor<B, 4> {
        let recent = x.clone().narrow(1, self.first, self.end - self.first);
        if self.sinks == 0 {
            return recent;
        }
        Tensor::cat(vec![x.clone().narrow(1, 0, self.sinks), recent], 1)
    }

    /// `all`, the gradient of all keys, plus `to`, that of what [`keys`](Self::keys) gives.
    fn add_to_keys<B: Backend>(&self, all: Tensor<B, 4>, to: &Tensor<B, 4>) -> Tensor<B, 4> {
        let [b, _, g, p] = all.dims();
        let parts = [
            (0, 0, self.sinks),
            (self.first, self.sinks, self.end - self.first),
        ];
        parts.into_iter().fold(all, |all, (start, from, len)| {
            if len == 0 {
                return all;
            }
            let sum = all.clone().narrow(1, start, len) + to.clone().narrow(1, from, len);
            all.slice_assign([0..b, start..start + len, 0..g, 0..p], sum)
        })
    }
}

/// Computes each block of queries separately, over the sinks and the keys in the windows of its queries. The window's
/// rule still holds, because it counts positions among these keys.
fn in_blocks<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    window: Window,
) -> Tensor<B, 4> {
    let (l, t) = (q.dims()[1], k.dims()[1]);
    let blocks = Block::all(l, t, window).map(|block| {
        let (k, v) = (block.keys(&k), block.keys(&v));
        weighted(block.queries(&q), k, v, Some(window).into())
    });
    Tensor::cat(blocks.collect(), 1)
}

/// The gradients of [`in_blocks`]. Those of the keys and values are added up in f32 at least.
fn gradients_in_blocks<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    dy: Tensor<B, 4>,
    window: Window,
) -> Gradients<B> {
    let (l, t, dtype) = (q.dims()[1], k.dims()[1], k.dtype());
    let mut dq = Vec::new();
    let (mut dk, mut dv) = (widen(k.zeros_like()), widen(v.zeros_like()));
    for block in Block::all(l, t, window) {
        let (keys, values) = (block.keys(&k), block.keys(&v));
        let (to_q, to_k, to_v) = gradients(
            block.queries(&q),
            keys,
            values,
            block.queries(&dy),
            Some(window).into(),
        );
        dq.push(to_q);
        dk = block.add_to_keys(dk, &widen(to_k));
        dv = block.add_to_keys(dv, &widen(to_v));
    }
    (Tensor::cat(dq, 1), narrow(dk, dtype), narrow(dv, dtype))
}
