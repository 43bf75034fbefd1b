//! The backward pass: one task a batch and group, since all heads of a group add to the gradients of the same keys and
//! values. The weights of a block of queries are made again.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::scores::{Scores, blocks, head_rows};
use crate::dense::attention::{Gradients, Visible};
use crate::flex::math::{dot, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, tensor};

/// The inputs, as they lie in memory.
struct Inputs<'a> {
    scores: Scores<'a>,
    /// `[b, t, g, p]`
    v: &'a [f32],
    /// `[b, l, h, p]`
    dy: &'a [f32],
    /// Queries, keys, heads, groups, head dimension.
    sizes: [usize; 5],
}

/// The gradients of the heads of one group.
struct OfGroup {
    /// Of the queries of each head, `[l, p]`.
    dq: Vec<Vec<f32>>,
    /// `[t, p]`
    dk: Vec<f32>,
    /// `[t, p]`
    dv: Vec<f32>,
}

pub(super) fn backward(
    q: Tensor<Flex, 4>,
    k: Tensor<Flex, 4>,
    v: Tensor<Flex, 4>,
    dy: Tensor<Flex, 4>,
    visible: Visible<Flex>,
) -> Gradients<Flex> {
    let [b, l, h, p] = q.dims();
    let [_, t, g, _] = k.dims();
    let (q, k, v, dy) = (Values::of(q), Values::of(k), Values::of(v), Values::of(dy));
    let sizes = [l, t, h, g, p];
    let inputs = Inputs {
        scores: Scores::new(&q, &k, sizes, visible),
        v: &v,
        dy: &dy,
        sizes,
    };
    let groups: Vec<OfGroup> = (0..b * g)
        .into_par_iter()
        .map(|i| {
            let (batch, group) = (i / g, i % g);
            let (mut dk, mut dv) = (vec![0.0; t * p], vec![0.0; t * p]);
            let heads = group * (h / g)..(group + 1) * (h / g);
            let dq = heads.map(|head| inputs.of_head(batch, head, &mut dk, &mut dv));
            let dq = dq.collect();
            OfGroup { dq, dk, dv }
        })
        .collect();
    let heads: Vec<&[f32]> = groups
        .iter()
        .flat_map(|group| &group.dq)
        .map(|dq| &dq[..])
        .collect();
    let dk: Vec<&[f32]> = groups.iter().map(|group| &group.dk[..]).collect();
    let dv: Vec<&[f32]> = groups.iter().map(|group| &group.dv[..]).collect();
    (
        tensor(interleave(&heads, b, l, p), [b, l, h, p]),
        tensor(interleave(&dk, b, t, p), [b, t, g, p]),
        tensor(interleave(&dv, b, t, p), [b, t, g, p]),
    )
}

impl Inputs<'_> {
    /// The gradient of a head's queries, `[l, p]`; those of its keys and values, `[t, p]`, are added to `dk` and `dv`.
    ///
    /// With `P` the weights and `dP = dy v^T`, the gradient of the scores is `P (dP - sum of P dP)`, row by row.
    fn of_head(&self, batch: usize, head: usize, dk: &mut [f32], dv: &mut [f32]) -> Vec<f32> {
        let (scores, [l, t, h, g, p]) = (&self.scores, self.sizes);
        let group = head / (h / g);
        let scale = 1.0 / (p as f32).sqrt();
        let mut dq = vec![0.0; l * p];
        let (mut weights, mut dscores) = (vec![], vec![]);
        for rows in blocks(l) {
            let columns = scores.columns(batch, &rows);
            let (n, width) = (rows.len(), columns.width());
            weights.resize(n * width, 0.0);
            dscores.resize(n * width, 0.0);
            scores.softmax_rows(batch, head, rows.clone(), &columns, &mut weights, width);
            let q = scores.queries(batch, head, rows.start);
            let dy = head_rows(self.dy, [l, h, p], batch, head, rows.start);
            for (span, place) in columns.spans() {
                let v = head_rows(self.v, [t, g, p], batch, group, span.start);
                let sizes = [n, span.len(), p];
                multiply(
                    sizes,
                    &mut dscores[place..],
                    width,
                    0.0,
                    dy,
                    v.transposed(),
                    false,
                );
            }
            vectorised(
                #[inline(always)]
                || {
                    let rows = weights
                        .chunks_exact(width)
                        .zip(dscores.chunks_exact_mut(width));
                    for (weights, dscores) in rows {
                        let along = dot(weights, dscores);
                        for (dscore, weight) in dscores.iter_mut().zip(weights) {
                            *dscore = scale * weight * (*dscore - along);
                        }
                    }
                },
            );
            let dq = &mut dq[rows.start * p..];
            for (number, (span, place)) in columns.spans().enumerate() {
                let keep = number.min(1) as f32;
                let of_span = |x| Matrix::rows(x, width);
                let (weights, dscores) = (of_span(&weights[place..]), of_span(&dscores[place..]));
                let k = scores.keys(batch, group, span.start);
                multiply([n, p, span.len()], dq, p, keep, dscores, k, false);
                let to = [span.len(), p, n];
                let (dk, dv) = (&mut dk[span.start * p..], &mut dv[span.start * p..]);
                multiply(to, dk, p, 1.0, dscores.transposed(), q, false);
                multiply(to, dv, p, 1.0, weights.transposed(), dy, false);
            }
        }
        dq
    }
}
