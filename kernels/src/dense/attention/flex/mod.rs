//! On slices: one task a batch and head, a block of queries at a time, so that no more of the matrix
//! exists than fits in the cache. Within a window a block has the columns alone that its queries see.

mod backward;
mod scores;

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Attention, Gradients, Saved, Visible, reference};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, is_f32, tensor};

pub(crate) use self::scores::{Columns, Scores};
use self::scores::{blocks, head_rows};

impl Attention for Flex {
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        if is_f32(&q) && is_f32(&k) && is_f32(&v) {
            forward(q, k, v, visible)
        } else {
            reference::forward(q, k, v, visible)
        }
    }

    fn attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        _saved: Option<Saved<Self>>,
        dy: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Gradients<Self> {
        if is_f32(&q) && is_f32(&k) && is_f32(&v) && is_f32(&dy) {
            backward::backward(q, k, v, dy, visible)
        } else {
            reference::backward(q, k, v, dy, visible)
        }
    }

    fn attention_matrix(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        if is_f32(&q) && is_f32(&k) {
            matrix(q, k, visible)
        } else {
            reference::matrix(q, k, visible)
        }
    }
}

fn forward(
    q: Tensor<Flex, 4>,
    k: Tensor<Flex, 4>,
    v: Tensor<Flex, 4>,
    visible: Visible<Flex>,
) -> Tensor<Flex, 4> {
    let [b, l, h, p] = q.dims();
    let [_, t, g, _] = k.dims();
    let (q, k, v) = (Values::of(q), Values::of(k), Values::of(v));
    let scores = Scores::new(&q, &k, [l, t, h, g, p], visible);
    let heads: Vec<Vec<f32>> = (0..b * h)
        .into_par_iter()
        .map(|i| {
            let (batch, head) = (i / h, i % h);
            let (mut y, mut weights) = (vec![0.0; l * p], vec![]);
            for rows in blocks(l) {
                let columns = scores.columns(batch, &rows);
                let (n, width) = (rows.len(), columns.width());
                weights.resize(n * width, 0.0);
                scores.softmax_rows(batch, head, rows.clone(), &columns, &mut weights, width);
                let y = &mut y[rows.start * p..];
                for (number, (span, place)) in columns.spans().enumerate() {
                    let keep = number.min(1) as f32;
                    let weights = Matrix::rows(&weights[place..], width);
                    let v = head_rows(&v, [t, g, p], batch, head / (h / g), span.start);
                    multiply([n, p, span.len()], y, p, keep, weights, v, false);
                }
            }
            y
        })
        .collect();
    let heads: Vec<&[f32]> = heads.iter().map(|y| &y[..]).collect();
    tensor(interleave(&heads, b, l, p), [b, l, h, p])
}

fn matrix(q: Tensor<Flex, 4>, k: Tensor<Flex, 4>, visible: Visible<Flex>) -> Tensor<Flex, 4> {
    let [b, l, h, p] = q.dims();
    let [_, t, g, _] = k.dims();
    let (q, k) = (Values::of(q), Values::of(k));
    let scores = Scores::new(&q, &k, [l, t, h, g, p], visible);
    let mut weights = vec![0.0; b * h * l * t];
    weights
        .par_chunks_mut(l * t)
        .enumerate()
        .for_each(|(i, weights)| {
            for rows in blocks(l) {
                let (out, columns) = (
                    &mut weights[rows.start * t..],
                    Columns::first(t - l + rows.end),
                );
                scores.softmax_rows(i / h, i % h, rows, &columns, out, t);
            }
        });
    tensor(weights, [b, h, l, t])
}
