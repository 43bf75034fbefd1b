//! On slices: one task a batch and head, a block of queries at a time, so that no more of the matrix
//! exists than fits in the cache.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Attention, Visible, reference};
use crate::documents::DocumentStarts;
use crate::flex::math::{exp, max, sum, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, is_f32, starts, tensor};

/// Queries in a block.
const BLOCK: usize = 64;

impl Attention for Flex {
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        if visible.window.is_none() && is_f32(&q) && is_f32(&k) && is_f32(&v) {
            forward(q, k, v, visible.documents)
        } else {
            reference::forward(q, k, v, visible)
        }
    }

    fn attention_matrix(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        if visible.window.is_none() && is_f32(&q) && is_f32(&k) {
            matrix(q, k, visible.documents)
        } else {
            reference::matrix(q, k, visible)
        }
    }
}

/// Queries and keys, as they lie in memory.
pub(crate) struct Scores<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    /// Queries, keys, heads, groups, head dimension.
    pub sizes: [usize; 5],
    /// The first key that each query sees, `[b, l]`; `None` if each query sees from key 0 on. If given, there are as
    /// many queries as keys.
    pub starts: Option<Vec<usize>>,
}

impl Scores<'_> {
    /// Rows `rows` of the attention matrix of one head into `out`, `t` apart. Columns that no row of
    /// the block sees are not written; those that some row does not see are 0 there.
    pub(crate) fn softmax_rows(
        &self,
        batch: usize,
        head: usize,
        rows: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let [l, t, h, g, p] = self.sizes;
        let seen = t - l + rows.end;
        let q = &self.q[((batch * l + rows.start) * h + head) * p..];
        let k = &self.k[(batch * t * g + head / (h / g)) * p..];
        let q = Matrix {
            values: q,
            row: h * p,
            column: 1,
        };
        let k = Matrix {
            values: k,
            row: g * p,
            column: 1,
        };
        multiply([rows.len(), seen, p], out, t, 0.0, q, k.transposed(), false);
        let scale = 1.0 / (p as f32).sqrt();
        let starts = self.starts.as_ref();
        let starts = starts.map(|starts| &starts[batch * l + rows.start..]);
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in out.chunks_mut(t).take(rows.len()).enumerate() {
                    let visible = t - l + rows.start + i + 1;
                    let (row, hidden) = row[..seen].split_at_mut(visible);
                    let first = starts.map_or(0, |starts| starts[i]);
                    let (before, row) = row.split_at_mut(first);
                    before.fill(0.0);
                    let largest = max(row);
                    for score in row.iter_mut() {
                        *score = exp(scale * (*score - largest));
                    }
                    let inverse = 1.0 / sum(row, |x| x);
                    for weight in row {
                        *weight *= inverse;
                    }
                    hidden.fill(0.0);
                }
            },
        );
    }
}

fn blocks(l: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..l)
        .step_by(BLOCK)
        .map(move |start| start..(start + BLOCK).min(l))
}

fn forward(
    q: Tensor<Flex, 4>,
    k: Tensor<Flex, 4>,
    v: Tensor<Flex, 4>,
    documents: Option<DocumentStarts<Flex>>,
) -> Tensor<Flex, 4> {
    let [b, l, h, p] = q.dims();
    let [_, t, g, _] = k.dims();
    let (q, k, v) = (Values::of(q), Values::of(k), Values::of(v));
    let scores = Scores {
        q: &q,
        k: &k,
        sizes: [l, t, h, g, p],
        starts: starts(documents),
    };
    let heads: Vec<Vec<f32>> = (0..b * h)
        .into_par_iter()
        .map(|i| {
            let (batch, head) = (i / h, i % h);
            let v = &v[(batch * t * g + head / (h / g)) * p..];
            let v = Matrix {
                values: v,
                row: g * p,
                column: 1,
            };
            let mut y = vec![0.0; l * p];
            let mut weights = vec![0.0; BLOCK.min(l) * t];
            for rows in blocks(l) {
                scores.softmax_rows(batch, head, rows.clone(), &mut weights);
                let weights = Matrix {
                    values: &weights,
                    row: t,
                    column: 1,
                };
                let sizes = [rows.len(), p, t - l + rows.end];
                multiply(sizes, &mut y[rows.start * p..], p, 0.0, weights, v, false);
            }
            y
        })
        .collect();
    let heads: Vec<&[f32]> = heads.iter().map(|y| &y[..]).collect();
    tensor(interleave(&heads, b, l, p), [b, l, h, p])
}

fn matrix(
    q: Tensor<Flex, 4>,
    k: Tensor<Flex, 4>,
    documents: Option<DocumentStarts<Flex>>,
) -> Tensor<Flex, 4> {
    let [b, l, h, p] = q.dims();
    let [_, t, g, _] = k.dims();
    let (q, k) = (Values::of(q), Values::of(k));
    let scores = Scores {
        q: &q,
        k: &k,
        sizes: [l, t, h, g, p],
        starts: starts(documents),
    };
    let mut weights = vec![0.0; b * h * l * t];
    weights
        .par_chunks_mut(l * t)
        .enumerate()
        .for_each(|(i, weights)| {
            for rows in blocks(l) {
                let out = &mut weights[rows.start * t..];
                scores.softmax_rows(i / h, i % h, rows, out);
            }
        });
    tensor(weights, [b, h, l, t])
}
