//! Weights in 8 and 4 bits on slices: a step reads each of them once, as it lies in memory, and never as floats.

mod rows;

use burn::tensor::{DType, Int, Tensor};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{Activation, Form, Input, Normalisation, Projection, Projections, Weight, reference};
use crate::dtype::narrow;
use crate::flex::math::{sigmoid, vectorised};
use crate::flex::products::{self, Matrix};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

/// Vectors that are multiplied with numbers as they are read: beyond, a product of matrices is faster.
const FEW: usize = 8;
/// Floats of a weight's rows that lie in a core's cache while they are multiplied with many vectors.
const BLOCK: usize = 1 << 16;

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
        let normed: Input<Self> = reference::normalised(x, norm).into();
        let apart = [Form::Int8, Form::Int4].map(|form| {
            let is_read = packed.iter().any(|packed| packed.form() == form);
            is_read.then(|| Apart::of(normed.clone(), form))
        });
        let sums = packed.iter().map(|packed| {
            let mut apart = apart.iter().flatten();
            let of_form = apart.find(|apart| apart.form == packed.form());
            vec![(packed, of_form.expect("made for every form"))]
        });
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
        let inputs = inputs.into_iter().zip(&packed);
        let inputs: Vec<_> = inputs
            .map(|((input, _), packed)| Apart::of(input, packed.form()))
            .collect();
        let mut sums = multiply(b, vec![packed.iter().zip(&inputs).collect()]);
        sums.swap_remove(0) + x
    }

    fn projection(x: Tensor<Self, 2>, projection: Projection<Self>) -> Tensor<Self, 2> {
        let [b, _] = x.dims();
        match Packed::of(&projection) {
            Some(packed) if are_few(&x) => {
                let x = Apart::of(x.into(), packed.form());
                multiply(b, vec![vec![(&packed, &x)]]).swap_remove(0)
            }
            Some(packed) if is_f32(&x) && b > 0 => multiply_many(x, &packed),
            _ => reference::linear(x, projection),
        }
    }

    fn multiplies_packed() -> bool {
        true
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

    fn int8_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        let words = is_f32(&scales).then(|| Words::of(packed.clone())).flatten();
        let Some(words) = words else {
            return narrow(reference::int8_to_float(packed, scales), dtype);
        };
        let scales = Scales::OfRows(Values::of(scales));
        narrow(floats(packed.dims(), &words, &scales), dtype)
    }

    fn int4_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        let (Some(words), Some(pairs)) = (Words::of(packed.clone()), Words::of(scales.clone()))
        else {
            return narrow(reference::int4_to_float(packed, scales), dtype);
        };
        narrow(
            floats(packed.dims(), &words, &Scales::OfGroups(pairs)),
            dtype,
        )
    }
}

/// 32-bit integers as one slice.
struct Words(FlexTensor);

impl Words {
    /// `None` where they are not 32 bits wide.
    fn of<const D: usize>(packed: Tensor<Flex, D, Int>) -> Option<Self> {
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

/// The scales of a packed weight.
enum Scales {
    /// `[d_out]`, of a weight in 8 bits.
    OfRows(Values),
    /// Two in a word, of a weight in 4 bits.
    OfGroups(Words),
}

impl Scales {
    fn form(&self) -> Form {
        match self {
            Self::OfRows(_) => Form::Int8,
            Self::OfGroups(_) => Form::Int4,
        }
    }

    fn slices(&self) -> ScaleSlices<'_> {
        match self {
            Self::OfRows(scales) => ScaleSlices::OfRows(scales),
            Self::OfGroups(pairs) => ScaleSlices::OfGroups(pairs.slice()),
        }
    }
}

/// The same as slices, which take their time to be had of a tensor: more than a row's product.
#[derive(Clone, Copy)]
enum ScaleSlices<'a> {
    OfRows(&'a [f32]),
    OfGroups(&'a [i32]),
}

/// A projection with a packed weight, as slices.
#[derive(Clone, Copy)]
struct Slices<'a> {
    words: &'a [i32],
    scales: ScaleSlices<'a>,
    bias: Option<&'a [f32]>,
    d_out: usize,
    width: usize,
}

/// The numbers of `words`, of the shape `[d_out, width]`: `[d_out, d_in]`.
fn floats([d_out, width]: [usize; 2], words: &Words, scales: &Scales) -> Tensor<Flex, 2> {
    let d_in = width * scales.form().in_element();
    let scales = scales.slices();
    let mut floats = vec![0.0; d_out * d_in];
    let rows = floats.par_chunks_mut(d_in.max(1));
    rows.with_min_len(rows_per_task(d_in))
        .zip(words.slice().par_chunks(width.max(1)))
        .enumerate()
        .for_each_init(
            || vec![0.0; width],
            |of_words, (row, (floats, words))| {
                vectorised(
                    #[inline(always)]
                    || floats_of(row, words, scales, of_words, floats),
                )
            },
        );
    tensor(floats, [d_out, d_in])
}

/// `x [t, d_in]` times a packed weight: `[t, d_out]`. Some rows at a time become floats, which never leave the cache of
/// the core that multiplies them.
fn multiply_many(x: Tensor<Flex, 2>, weight: &Packed) -> Tensor<Flex, 2> {
    let [t, d_in] = x.dims();
    let (x, weight) = (Values::of(x), weight.slices());
    let (d_out, width) = (weight.d_out, weight.width);
    let x_it = Matrix::rows(&x, d_in).transposed();
    let rows = (BLOCK / d_in.max(1)).clamp(1, d_out.max(1));
    let mut y_ot = vec![0.0; d_out * t];
    let blocks = y_ot.par_chunks_mut(rows * t).enumerate();
    let scratch = || (vec![0.0; rows * d_in], vec![0.0; width]);
    blocks.for_each_init(scratch, |(floats, of_words), (block, y)| {
        let (first, n) = (block * rows, y.len() / t);
        let floats = &mut floats[..n * d_in];
        vectorised(
            #[inline(always)]
            || {
                for (i, floats) in floats.chunks_exact_mut(d_in).enumerate() {
                    let row = first + i;
                    let words = &weight.words[row * width..][..width];
                    floats_of(row, words, weight.scales, of_words, floats);
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

/// The numbers of the row `row`, whose words these are. `of_words` has room for the scale of each word.
#[inline(always)]
fn floats_of(
    row: usize,
    words: &[i32],
    scales: ScaleSlices,
    of_words: &mut [f32],
    floats: &mut [f32],
) {
    match scales {
        ScaleSlices::OfRows(scales) => rows::floats_of_int8(words, scales[row], floats),
        ScaleSlices::OfGroups(pairs) => {
            let first = row * words.len() / rows::WORDS;
            rows::scales_of_words(pairs, first, of_words);
            rows::floats_of_int4(words, of_words, floats);
        }
    }
}

/// Whether there are so few vectors, and in f32, that packed weights are multiplied as they are.
fn are_few(x: &Tensor<Flex, 2>) -> bool {
    (1..=FEW).contains(&x.dims()[0]) && is_f32(x)
}

/// A projection with a packed weight.
struct Packed {
    /// `[d_out, width]`.
    words: Words,
    scales: Scales,
    /// `[d_out]`.
    bias: Option<Values>,
    d_out: usize,
    width: usize,
}

impl Packed {
    /// `None` where the weight is in floats, or its numbers or scales are not 32 bits wide.
    fn of(projection: &Projection<Flex>) -> Option<Self> {
        let (packed, scales) = match &projection.weight {
            Weight::Int8 { packed, scales } if is_f32(scales) => {
                (packed, Scales::OfRows(Values::of(scales.clone())))
            }
            Weight::Int4 { packed, scales } => {
                (packed, Scales::OfGroups(Words::of(scales.clone())?))
            }
            _ => return None,
        };
        let [d_out, width] = packed.dims();
        Some(Self {
            words: Words::of(packed.clone())?,
            scales,
            bias: (projection.bias.clone()).map(|bias| Values::of(bias.cast(DType::F32))),
            d_out,
            width,
        })
    }

    fn form(&self) -> Form {
        self.scales.form()
    }

    fn slices(&self) -> Slices<'_> {
        Slices {
            words: self.words.slice(),
            scales: self.scales.slices(),
            bias: self.bias.as_deref(),
            d_out: self.d_out,
            width: self.width,
        }
    }
}

/// Vectors of which the numbers that meet the same place of each word lie together.
struct Apart {
    /// `[b, places, d_in / places]`.
    values: Vec<f32>,
    d_in: usize,
    /// Of the weight that they meet.
    form: Form,
}

impl Apart {
    fn of(input: Input<Flex>, form: Form) -> Self {
        let [b, d_in] = input.u.dims();
        let (u, gate) = (Values::of(input.u), input.gate.map(Values::of));
        let (gate, places) = (gate.as_deref(), form.in_element());
        let width = d_in / places;
        let mut values = vec![0.0; b * d_in];
        for (row, to) in values.chunks_exact_mut(d_in).enumerate() {
            let from = &u[row * d_in..][..d_in];
            for (j, of_word) in from.chunks_exact(places).enumerate() {
                for (place, value) in of_word.iter().enumerate() {
                    to[place * width + j] = match gate {
                        Some(gate) => gate[row * d_in + places * j + place] * value,
                        None => *value,
                    };
                }
            }
        }
        Self { values, d_in, form }
    }
}

/// A product that is a term of a sum.
type Term<'a> = (&'a Packed, &'a Apart);

/// Each of some sums of products, `[b, d_out]`, in one go over the rows of all weights.
fn multiply(b: usize, sums: Vec<Vec<Term>>) -> Vec<Tensor<Flex, 2>> {
    let slices = sums.iter().map(|sum| {
        let terms = sum.iter().map(|(packed, x)| (packed.slices(), *x));
        terms.collect::<Vec<_>>()
    });
    let sums: Vec<_> = slices.collect();
    let d_out = |sum: &[(Slices, &Apart)]| sum[0].0.d_out;
    let mut outputs: Vec<_> = sums.iter().map(|sum| vec![0.0; d_out(sum) * b]).collect();
    let tasks = outputs.iter_mut().zip(&sums).flat_map(|(y_ob, sum)| {
        let width: usize = sum.iter().map(|(packed, _)| packed.width).sum();
        let rows = rows_per_task(width);
        let tasks = y_ob.chunks_mut(rows * b).enumerate();
        tasks.map(move |(task, y)| (task * rows, sum, y))
    });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().for_each(|(first, sum, y)| {
        let mut scales = Vec::new();
        vectorised(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(b).enumerate() {
                    for term in sum {
                        add_row(y, first + i, term, &mut scales);
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

/// Adds the products of a weight's row with all vectors to `y [b]`. `of_words` is for the scales of the row's words.
#[inline(always)]
fn add_row(y: &mut [f32], row: usize, (weight, x): &(Slices, &Apart), of_words: &mut Vec<f32>) {
    let width = weight.width;
    let words = &weight.words[row * width..][..width];
    if let ScaleSlices::OfGroups(pairs) = weight.scales {
        of_words.resize(width, 0.0);
        rows::scales_of_words(pairs, row * width / rows::WORDS, of_words);
    }
    for (y, x) in y.iter_mut().zip(x.values.chunks_exact(x.d_in)) {
        let product = match weight.scales {
            ScaleSlices::OfRows(scales) => scales[row] * rows::dot_int8(words, x),
            ScaleSlices::OfGroups(_) => rows::dot_int4(words, of_words, x),
        };
        *y += match weight.bias {
            Some(bias) => product + bias[row],
            None => product,
        };
    }
}
