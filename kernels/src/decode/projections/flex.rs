//! Weights in 8 bits on slices: a step reads each of them once, as it lies in memory, and never as floats.

use burn::tensor::{DType, Int, Tensor};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{Activation, Input, Normalisation, Projection, Projections, Weight, reference};
use crate::flex::math::{LANES, sigmoid, vectorised};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

/// Vectors that are worth less than the weight as floats: beyond, a product of matrices is faster.
const FEW: usize = 8;

impl Projections for Flex {
    fn projections_into(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projections: Vec<(Projection<Self>, Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        let packed = projections.iter();
        let packed: Option<Vec<_>> = packed
            .map(|(projection, _)| Packed::of(projection))
            .collect();
        let (true, Some(packed)) = (are_few(&x), packed) else {
            return reference::into(x, norm, projections);
        };
        let [b, _] = x.dims();
        let normed = Apart::of(reference::normalised(x, norm).into());
        let sums = packed.iter().map(|packed| vec![(packed, &normed)]);
        let outputs = multiply(b, sums.collect()).into_iter().zip(projections);
        let activate = |(y, (_, activation))| Self::projection_activated(y, activation);
        outputs.map(activate).collect()
    }

    fn projections_out_of(
        x: Tensor<Self, 2>,
        inputs: Vec<(Input<Self>, Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        let packed = inputs.iter();
        let packed: Option<Vec<_>> = packed
            .map(|(_, projection)| Packed::of(projection))
            .collect();
        let few = |input: &Input<Self>| are_few(&input.u) && input.gate.as_ref().is_none_or(is_f32);
        let all_few = inputs.iter().all(|(input, _)| few(input));
        let (true, Some(packed)) = (all_few, packed) else {
            return reference::out_of(x, inputs);
        };
        let [b, _] = x.dims();
        let inputs: Vec<_> = inputs
            .into_iter()
            .map(|(input, _)| Apart::of(input))
            .collect();
        let mut sums = multiply(b, vec![packed.iter().zip(&inputs).collect()]);
        sums.swap_remove(0) + x
    }

    fn projection(x: Tensor<Self, 2>, projection: Projection<Self>) -> Tensor<Self, 2> {
        let [b, _] = x.dims();
        match Packed::of(&projection) {
            Some(packed) if are_few(&x) => {
                let x = Apart::of(x.into());
                multiply(b, vec![vec![(&packed, &x)]]).swap_remove(0)
            }
            _ => reference::linear(x, projection),
        }
    }

    fn projection_activated(y: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        if activation != Activation::Silu || !is_f32(&y) {
            return reference::activated(y, activation);
        }
        let shape = y.dims();
        let mut y = Values::of(y).to_vec();
        vectorised(
            #[inline(always)]
            || y.iter_mut().for_each(|v| *v *= sigmoid(*v)),
        );
        tensor(y, shape)
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

/// Whether there are so few vectors, and in f32, that weights in 8 bits are multiplied as they are.
fn are_few(x: &Tensor<Flex, 2>) -> bool {
    (1..=FEW).contains(&x.dims()[0]) && is_f32(x)
}

/// A projection with a weight in 8 bits.
struct Packed {
    /// `[d_out, d_in / 4]`.
    words: Words,
    /// `[d_out]`.
    scales: Values,
    /// `[d_out]`.
    bias: Option<Values>,
}

impl Packed {
    /// `None` where the weight is in floats, or its numbers or scales are not 32 bits wide.
    fn of(projection: &Projection<Flex>) -> Option<Self> {
        match &projection.weight {
            Weight::Int8 { packed, scales } if is_f32(scales) => Some(Self {
                words: Words::of(packed.clone())?,
                scales: Values::of(scales.clone()),
                bias: (projection.bias.clone()).map(|bias| Values::of(bias.cast(DType::F32))),
            }),
            _ => None,
        }
    }
}

/// Vectors of which the numbers that meet the same byte of each word lie together.
struct Apart {
    /// `[b, 4, d_in / 4]`.
    values: Vec<f32>,
    d_in: usize,
}

impl Apart {
    fn of(input: Input<Flex>) -> Self {
        let [b, d_in] = input.u.dims();
        let (u, gate) = (Values::of(input.u), input.gate.map(Values::of));
        let (gate, width) = (gate.as_deref(), d_in / 4);
        let mut values = vec![0.0; b * d_in];
        for (row, to) in values.chunks_exact_mut(d_in).enumerate() {
            let from = &u[row * d_in..][..d_in];
            for (j, four) in from.as_chunks::<4>().0.iter().enumerate() {
                for (byte, value) in four.iter().enumerate() {
                    to[byte * width + j] = match gate {
                        Some(gate) => gate[row * d_in + 4 * j + byte] * value,
                        None => *value,
                    };
                }
            }
        }
        Self { values, d_in }
    }
}

/// A product that is a term of a sum.
type Term<'a> = (&'a Packed, &'a Apart);

/// Each of some sums of products, `[b, d_out]`, in one go over the rows of all weights.
fn multiply(b: usize, sums: Vec<Vec<Term>>) -> Vec<Tensor<Flex, 2>> {
    let d_out = |sum: &[Term]| sum[0].0.scales.len();
    let mut outputs: Vec<_> = sums.iter().map(|sum| vec![0.0; d_out(sum) * b]).collect();
    let tasks = outputs.iter_mut().zip(&sums).flat_map(|(y_ob, sum)| {
        let width: usize = sum.iter().map(|(_, x)| x.d_in / 4).sum();
        let rows = rows_per_task(width);
        let tasks = y_ob.chunks_mut(rows * b).enumerate();
        tasks.map(move |(task, y)| (task * rows, sum, y))
    });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().for_each(|(first, sum, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(b).enumerate() {
                    for term in sum {
                        add_row(y, first + i, term);
                    }
                }
            },
        )
    });
    let outputs = outputs.into_iter().zip(&sums);
    outputs
        .map(|(y_ob, sum)| match b {
            1 => tensor(y_ob, [1, d_out(sum)]),
            _ => tensor(y_ob, [d_out(sum), b]).swap_dims(0, 1),
        })
        .collect()
}

/// Adds the products of a weight's row with all vectors to `y [b]`.
#[inline(always)]
fn add_row(y: &mut [f32], row: usize, (weight, x): &Term) {
    let width = x.d_in / 4;
    let words = &weight.words.slice()[row * width..][..width];
    for (y, x) in y.iter_mut().zip(x.values.chunks_exact(x.d_in)) {
        let product = weight.scales[row] * dot(words, x);
        *y += match &weight.bias {
            Some(bias) => product + bias[row],
            None => product,
        };
    }
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
