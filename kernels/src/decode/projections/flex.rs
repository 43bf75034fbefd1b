//! Weights in 8 bits on slices: a step reads each of them once, as it lies in memory, and never as floats.

use burn::tensor::{DType, Int, Tensor};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{Projection, Projections, Weight, reference};
use crate::flex::math::{LANES, vectorised};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

/// Vectors that are worth less than the weight as floats: beyond, a product of matrices is faster.
const FEW: usize = 8;

impl Projections for Flex {
    fn projection(x: Tensor<Self, 2>, projection: Projection<Self>) -> Tensor<Self, 2> {
        let [b, _] = x.dims();
        if let Weight::Int8 { packed, scales } = &projection.weight
            && b <= FEW
            && is_f32(&x)
            && is_f32(scales)
            && let Some(words) = Words::of(packed.clone())
        {
            let bias = projection
                .bias
                .map(|bias| Values::of(bias.cast(DType::F32)));
            return multiply(x, &words, scales.clone(), bias);
        }
        reference::linear(x, projection)
    }

    fn int8_to_float(packed: Tensor<Self, 2, Int>, scales: Tensor<Self, 1>) -> Tensor<Self, 2> {
        let [d_out, width] = packed.dims();
        let words = is_f32(&scales).then(|| Words::of(packed.clone())).flatten();
        let Some(words) = words else {
            return reference::int8_to_float(packed, scales);
        };
        let (words, scales) = (words.slice(), Values::of(scales));
        let mut floats = vec![0.0; 4 * d_out * width];
        let rows = floats.par_chunks_mut(4 * width.max(1));
        rows.with_min_len(rows_per_task(4 * width))
            .zip(words.par_chunks(width.max(1)))
            .zip(&*scales)
            .for_each(|((row, words), scale)| {
                for (four, word) in row.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    *four = word.to_le_bytes().map(|byte| f32::from(byte as i8) * scale);
                }
            });
        tensor(floats, [d_out, 4 * width])
    }
}

/// Packed numbers as one slice.
struct Words(FlexTensor);

impl Words {
    /// `None` where they are not 32 bits wide.
    fn of(packed: Tensor<Flex, 2, Int>) -> Option<Self> {
        let packed = packed.into_primitive();
        let packed = if packed.as_slice::<i32>().is_some() {
            packed
        } else {
            packed.to_contiguous()
        };
        packed.as_slice::<i32>().is_some().then_some(Self(packed))
    }

    fn slice(&self) -> &[i32] {
        self.0.as_slice().expect("32 bits, made contiguous")
    }
}

/// `x [b, d_in]` to `[b, d_out]`.
fn multiply(
    x: Tensor<Flex, 2>,
    words: &Words,
    scales: Tensor<Flex, 1>,
    bias: Option<Values>,
) -> Tensor<Flex, 2> {
    let [b, d_in] = x.dims();
    let [d_out] = scales.dims();
    let (x, scales, words) = (Values::of(x), Values::of(scales), words.slice());
    let width = d_in / 4;
    // The numbers that meet the same byte of each word lie together.
    let mut apart = vec![0.0; b * d_in];
    for (from, to) in x.chunks_exact(d_in).zip(apart.chunks_exact_mut(d_in)) {
        for (j, four) in from.as_chunks::<4>().0.iter().enumerate() {
            for (byte, value) in four.iter().enumerate() {
                to[byte * width + j] = *value;
            }
        }
    }
    let mut y_ob = vec![0.0; d_out * b];
    let rows = rows_per_task(width);
    y_ob.par_chunks_mut(rows * b)
        .enumerate()
        .for_each(|(task, y)| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, y) in y.chunks_exact_mut(b).enumerate() {
                        let row = task * rows + i;
                        let words = &words[row * width..(row + 1) * width];
                        for (y, x) in y.iter_mut().zip(apart.chunks_exact(d_in)) {
                            *y = scales[row] * dot(words, x);
                            if let Some(bias) = &bias {
                                *y += bias[row];
                            }
                        }
                    }
                },
            )
        });
    tensor(y_ob, [d_out, b]).swap_dims(0, 1)
}

/// The sum of the bytes of `words` times `x`, which has the numbers for all first bytes, then those for all second
/// ones, and so on.
#[inline(always)]
fn dot(words: &[i32], x: &[f32]) -> f32 {
    let n = words.len();
    let [x0, x1, x2, x3] = [0, 1, 2, 3].map(|byte| &x[byte * n..(byte + 1) * n]);
    let byte = |word: i32, shift: u32| (word << shift >> 24) as f32;
    let of_word = |word: i32, x: [f32; 4]| {
        byte(word, 24) * x[0] + byte(word, 16) * x[1] + byte(word, 8) * x[2] + byte(word, 0) * x[3]
    };
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let block = start..start + LANES;
        let words = &words[block.clone()];
        let (x0, x1) = (&x0[block.clone()], &x1[block.clone()]);
        let (x2, x3) = (&x2[block.clone()], &x3[block]);
        for k in 0..LANES {
            lanes[k] += of_word(words[k], [x0[k], x1[k], x2[k], x3[k]]);
        }
    }
    let rest = (whole..n).map(|j| of_word(words[j], [x0[j], x1[j], x2[j], x3[j]]));
    lanes.iter().sum::<f32>() + rest.sum::<f32>()
}
