//! Packed weights as floats: all at once, or some rows at a time, for products with many vectors.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::packed::{Packed, ScaleSlices, Scales, Words};
use super::rows;
use crate::flex::math::vectorised;
use crate::flex::products::{self, Matrix};
use crate::flex::{Values, rows_per_task, tensor};

/// Floats of a weight's rows that lie in a core's cache while they are multiplied.
const BLOCK: usize = 1 << 16;

/// The numbers of `words`, of the shape `[d_out, width]`: `[d_out, d_in]`.
pub(super) fn floats(
    [d_out, width]: [usize; 2],
    words: &Words,
    scales: &Scales,
) -> Tensor<Flex, 2> {
    let d_in = width * scales.form().in_element();
    let scales = scales.slices();
    let mut floats = vec![0.0; d_out * d_in];
    let rows = floats.par_chunks_mut(d_in.max(1));
    rows.with_min_len(rows_per_task(d_in))
        .zip(words.slice().par_chunks(width.max(1)))
        .enumerate()
        .for_each(|(row, (floats, words))| {
            vectorised(
                #[inline(always)]
                || floats_of(row, words, scales, floats),
            )
        });
    tensor(floats, [d_out, d_in])
}

/// `x [t, d_in]` times a packed weight: `[t, d_out]`. Some rows at a time become floats, which never leave the cache of
/// the core that multiplies them.
pub(super) fn multiply(x: Tensor<Flex, 2>, weight: &Packed) -> Tensor<Flex, 2> {
    let [t, d_in] = x.dims();
    let (x, weight) = (Values::of(x), weight.slices());
    let (d_out, width) = (weight.d_out, weight.width);
    let x_it = Matrix::rows(&x, d_in).transposed();
    let rows = (BLOCK / d_in.max(1)).clamp(1, d_out.max(1));
    let mut y_ot = vec![0.0; d_out * t];
    let blocks = y_ot.par_chunks_mut(rows * t).enumerate();
    let scratch = || vec![0.0; rows * d_in];
    blocks.for_each_init(scratch, |floats, (block, y)| {
        let (first, n) = (block * rows, y.len() / t);
        let floats = &mut floats[..n * d_in];
        vectorised(
            #[inline(always)]
            || {
                for (i, floats) in floats.chunks_exact_mut(d_in).enumerate() {
                    let row = first + i;
                    let words = &weight.words[row * width..][..width];
                    floats_of(row, words, weight.scales, floats);
                }
            },
        );
        let floats = Matrix::rows(floats, d_in);
        products::multiply([n, t, d_in], y, t, 0.0, floats, x_it, false);
        if let Some(bias) = weight.bias {
            for (i, y) in y.chunks_exact_mut(t).enumerate() {
                y.iter_mut().for_each(|y| *y += bias[first + i]);
            }
        }
    });
    tensor(y_ot, [d_out, t]).swap_dims(0, 1)
}

/// The numbers of the row `row`, whose words these are.
#[inline(always)]
fn floats_of(row: usize, words: &[i32], scales: ScaleSlices, floats: &mut [f32]) {
    match scales {
        ScaleSlices::OfRows(scales) => rows::floats_of_int8(words, scales[row], floats),
        ScaleSlices::OfGroups(pairs) => {
            let first = row * words.len() / rows::WORDS;
            rows::floats_of_int4(words, rows::scales_of_groups(pairs, first), floats);
        }
    }
}
