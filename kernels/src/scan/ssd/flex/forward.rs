//! The outputs and the last state: one task a batch and head.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::decays::Decays;
use super::heads::{Head, ScanValues, Sizes};
use super::rows::{multiply_elements, scale_rows, scaled_copy};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{interleave, tensor};
use crate::scan::ssd::ScanInputs;

/// The start and length of each chunk.
pub(super) fn chunks(
    l: usize,
    chunk: usize,
) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator {
    (0..l.div_ceil(chunk)).map(move |k| (k * chunk, chunk.min(l - k * chunk)))
}

/// Steps 2 and 3: `state [p, n]` through one chunk.
pub(super) fn advance(head: &Head, start: usize, decays: &Decays, state: &mut [f32]) {
    let Sizes { p, n, .. } = head.inputs.sizes;
    let x_out = scaled_copy(head.rows_hp(head.inputs.x, start), decays.out(), p);
    let b = head.rows_gn(head.inputs.b, start);
    let x_out = Matrix::rows(&x_out, p).transposed();
    multiply([p, n, decays.q], state, n, decays.whole(), x_out, b, false);
}

/// `y [l, p]` and the last state `[p, n]` of one head.
fn forward_head(head: &Head) -> (Vec<f32>, Vec<f32>) {
    let Sizes { l, p, n, chunk, .. } = head.inputs.sizes;
    let mut y = vec![0.0; l * p];
    let mut state = head.initial_state();
    for (start, q) in chunks(l, chunk) {
        let decays = Decays::of(head, start, q);
        let (x, b, c) = (
            head.rows_hp(head.inputs.x, start),
            head.rows_gn(head.inputs.b, start),
            head.rows_gn(head.inputs.c, start),
        );
        let y = &mut y[start * p..][..q * p];
        // 4. What the entering state gives each output.
        let state_np = Matrix::rows(&state, n).transposed();
        multiply([q, p, n], y, p, 0.0, c, state_np, false);
        scale_rows(y, &decays.into, p);
        // 1. Inside the chunk.
        let mut scores = vec![0.0; q * q];
        multiply([q, q, n], &mut scores, q, 0.0, c, b.transposed(), false);
        multiply_elements(&mut scores, &decays.inside);
        multiply([q, p, q], y, p, 1.0, Matrix::rows(&scores, q), x, false);
        // 2. and 3.
        advance(head, start, &decays, &mut state);
    }
    (y, state)
}

pub(super) fn forward(scan: ScanInputs<Flex>, chunk: usize) -> (Tensor<Flex, 4>, Tensor<Flex, 4>) {
    let values = ScanValues::of(scan, chunk);
    let (batch, inputs) = (values.batch, values.slices());
    let Sizes { l, h, p, n, .. } = inputs.sizes;
    let heads: Vec<(Vec<f32>, Vec<f32>)> = (0..batch * h)
        .into_par_iter()
        .map(|i| {
            forward_head(&Head {
                inputs: &inputs,
                batch: i / h,
                head: i % h,
            })
        })
        .collect();
    let ys: Vec<&[f32]> = heads.iter().map(|(y, _)| &y[..]).collect();
    let states = heads.iter().flat_map(|(_, state)| state).copied().collect();
    (
        tensor(interleave(&ys, batch, l, p), [batch, l, h, p]),
        tensor(states, [batch, h, p, n]),
    )
}
