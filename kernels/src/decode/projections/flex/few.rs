//! Products with few vectors, in one go over the rows of all weights of an op, none of which becomes a float.

use std::cell::OnceCell;

use burn::tensor::Tensor;
use burn_flex::Flex;
use pulp::bytemuck;
use rayon::prelude::*;

use super::packed::{Packed, ScaleSlices};
use super::places::{self, Places, Scratch};
use super::rounded::{self, Rounded};
use crate::decode::projections::Input;
use crate::flex::math::vectorised;
use crate::flex::{rows_per_task, tensor};

/// The vectors in the formats that packed weights need; only the formats of the given weights are made.
pub(super) struct Vectors {
    input: Input<Flex>,
    rounded: OnceCell<Rounded>,
    places: OnceCell<Places>,
}

impl Vectors {
    pub(super) fn of(input: impl Into<Input<Flex>>) -> Self {
        Self {
            input: input.into(),
            rounded: OnceCell::new(),
            places: OnceCell::new(),
        }
    }

    /// For weights in 8 bits.
    fn rounded(&self) -> &Rounded {
        self.rounded.get_or_init(|| Rounded::of(&self.input))
    }

    /// For weights in 4 bits.
    fn places(&self) -> &Places {
        self.places.get_or_init(|| Places::of(self.rounded()))
    }
}

/// A product that is a term of a sum.
pub(super) type Term<'a> = (&'a Packed, &'a Vectors);

/// The same as slices.
struct Product<'a> {
    of_rows: OfRows<'a>,
    /// `[d_out]`.
    bias: Option<&'a [f32]>,
    d_out: usize,
    /// Words of a row.
    width: usize,
}

/// The rows of a weight, and the vectors that they are multiplied with.
enum OfRows<'a> {
    Int8 {
        /// `[d_out, d_in]`.
        numbers: &'a [i8],
        /// `[d_out]`.
        scales: &'a [f32],
        vectors: Vec<rounded::Vector<'a>>,
    },
    Int4 {
        /// `[d_out, width]`.
        words: &'a [i32],
        pairs: &'a [i32],
        vectors: Vec<places::Vector<'a>>,
    },
}

impl<'a> Product<'a> {
    fn of((packed, vectors): Term<'a>) -> Self {
        let weight = packed.slices();
        let of_rows = match weight.scales {
            ScaleSlices::OfRows(scales) => OfRows::Int8 {
                numbers: bytemuck::cast_slice(weight.words),
                scales,
                vectors: vectors.rounded().vectors(),
            },
            ScaleSlices::OfGroups(pairs) => OfRows::Int4 {
                words: weight.words,
                pairs,
                vectors: vectors.places().vectors(),
            },
        };
        Self {
            of_rows,
            bias: weight.bias,
            d_out: weight.d_out,
            width: weight.width,
        }
    }

    /// Adds the products of a row with all vectors to `y [b]`.
    #[inline(always)]
    fn add_row(&self, y: &mut [f32], row: usize, scratch: &mut Scratch) {
        let width = self.width;
        let bias = self.bias.map_or(0.0, |bias| bias[row]);
        match &self.of_rows {
            OfRows::Int8 {
                numbers,
                scales,
                vectors,
            } => {
                let numbers = &numbers[row * 4 * width..][..4 * width];
                for (y, x) in y.iter_mut().zip(vectors) {
                    *y += scales[row] * rounded::dot(numbers, *x) + bias;
                }
            }
            OfRows::Int4 {
                words,
                pairs,
                vectors,
            } => {
                let words = &words[row * width..][..width];
                scratch.take_scales(pairs, row, width);
                for (y, x) in y.iter_mut().zip(vectors) {
                    *y += places::dot(words, *x, scratch) + bias;
                }
            }
        }
    }
}

/// Each of some sums of products, `[b, d_out]`, in one go over the rows of all weights.
pub(super) fn multiply(b: usize, sums: Vec<Vec<Term>>) -> Vec<Tensor<Flex, 2>> {
    let sums = sums.into_iter();
    let sums: Vec<Vec<_>> = sums
        .map(|sum| sum.into_iter().map(Product::of).collect())
        .collect();
    let d_out = |sum: &[Product]| sum[0].d_out;
    let mut outputs: Vec<_> = sums.iter().map(|sum| vec![0.0; d_out(sum) * b]).collect();
    let tasks = outputs.iter_mut().zip(&sums).flat_map(|(y_ob, sum)| {
        let width: usize = sum.iter().map(|product| product.width).sum();
        let rows = rows_per_task(width);
        let tasks = y_ob.chunks_mut(rows * b).enumerate();
        tasks.map(move |(task, y)| (task * rows, sum, y))
    });
    let tasks: Vec<_> = tasks.collect();
    // One by one, so that no thread waits for long when the other has taken the last ones.
    let tasks = tasks.into_par_iter().with_max_len(1);
    tasks.for_each(|(first, sum, y)| {
        let mut scratch = Scratch::default();
        vectorised(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(b).enumerate() {
                    for product in sum {
                        product.add_row(y, first + i, &mut scratch);
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
