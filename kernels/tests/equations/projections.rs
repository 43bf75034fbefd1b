//! Weights of eight and four bits, and what stands around projections.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::decode::projections::{
    Activation, Form, GROUP, Input, Normalisation, Projection, Weight, into, out_of,
};
use kernels::runtime::{Flex, NdArray64};

use crate::support::*;

/// No number moves by more than half a step of its row, of which the largest number is 127.
#[test]
fn eight_bits_hold_a_weight_to_half_a_step() {
    fn check<B: KernelBackend>() {
        let [d_out, d_in] = [5, 12];
        let (shape, mut weight) = random(1, &[d_out, d_in], 1.0);
        weight[3] = -4.0;
        // A row of zeros has no step.
        weight[d_in..2 * d_in].fill(0.0);
        let packed = Weight::<B>::Float(tensor((shape, weight.clone()))).to_int8();
        assert_eq!(packed.dims(), [d_out, d_in]);
        assert!(packed.bytes() < 4 * d_out * d_in, "{}", packed.bytes());
        let (_, held) = values(packed.to_float(DType::F32));
        for (row, held) in weight.chunks(d_in).zip(held.chunks(d_in)) {
            let largest = row.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
            let half = largest / 254.0;
            let moved = row.iter().zip(held).map(|(a, b)| (a - b).abs());
            assert!(
                moved.clone().all(|by| by <= half * 1.00001),
                "{row:?} became {held:?}"
            );
            assert!(
                largest == 0.0 || moved.sum::<f64>() > 0.0,
                "{held:?} is {row:?}"
            );
        }
    }
    check::<NdArray64>();
    check::<Flex>();
}

/// Numbers move by less than a step of their group, and together by what rounding to 16 steps makes likely; a weight in
/// other memory has the same numbers.
#[test]
fn four_bits_hold_a_weight_to_steps_of_its_groups() {
    fn held<B: KernelBackend>(weight: &Values) -> Vec<f64> {
        let packed = Weight::<B>::Float(tensor(weight.clone())).to_int4();
        assert_eq!(packed.form(), Form::Int4);
        assert_eq!(packed.dims().to_vec(), weight.0);
        // Five bits a number at most: four, and the groups' scales.
        assert!(
            packed.bytes() <= 5 * weight.1.len().div_ceil(8) + 4
                || B::name(&Default::default()) != "flex"
        );
        values(packed.to_float(DType::F32)).1
    }
    // An odd number of groups, whose sizes are far apart; the second is of zeros.
    let mut weight = random(1, &[3, 3 * GROUP], 1.0);
    let groups = weight.1.chunks_mut(GROUP).zip([1.0, 0.0, 1e-3, 1e-5]);
    groups.for_each(|(group, size)| group.iter_mut().for_each(|v| *v *= size));
    let found = held::<Flex>(&weight);
    assert_eq!(found, held::<NdArray64>(&weight));
    for (group, held) in weight.1.chunks(GROUP).zip(found.chunks(GROUP)) {
        let largest = group
            .iter()
            .fold(0.0_f64, |largest, v| largest.max(v.abs()));
        let apart = group.iter().zip(held).map(|(a, b)| (a - b).abs());
        let worst = apart.clone().fold(0.0, f64::max);
        assert!(worst <= largest / 7.0, "{group:?} became {held:?}");
        let squares: f64 = apart.map(|apart| apart * apart).sum();
        // A step of a seventh, of which the mean square error is a twelfth.
        let even = GROUP as f64 * (largest / 7.0).powi(2) / 12.0;
        assert!(squares <= 1.2 * even, "{group:?} became {held:?}");
        assert!(largest == 0.0 || squares > 0.0, "{held:?} is {group:?}");
    }
}

/// Rows that are no whole groups are in 8 bits, and rows that are no whole words in floats.
#[test]
fn rows_of_any_length_have_a_form() {
    for (d_in, form, int8) in [
        (64, Form::Int4, Form::Int8),
        (36, Form::Int8, Form::Int8),
        (6, Form::Float, Form::Float),
    ] {
        let weight = Weight::<Flex>::Float(tensor(random(1, &[2, d_in], 1.0)));
        assert_eq!(weight.clone().to_int4().form(), form);
        assert_eq!(weight.to_int8().form(), int8);
    }
}

/// Numbers of a vector that are rounded to 16 bits together on the CPU.
const BLOCK: usize = 512;

/// The change of the product of `u` and `row` by the rounding of `u`: the largest, and the mean square if each error is
/// uniform up to half a step.
fn rounding(row: &[f64], u: &[f64]) -> (f64, f64) {
    let blocks = row.chunks(BLOCK).zip(u.chunks(BLOCK));
    let each = blocks.map(|(row, u)| {
        let step = u.iter().fold(0.0_f64, |most, u| most.max(u.abs())) / 32_767.0;
        let sizes: f64 = row.iter().map(|w| w.abs()).sum();
        let squares: f64 = row.iter().map(|w| w * w).sum();
        (0.5 * step * sizes, step * step / 12.0 * squares)
    });
    each.fold((0.0, 0.0), |all, each| (all.0 + each.0, all.1 + each.1))
}

/// A packed weight gives what its numbers give as floats, for one vector, a few and many, with and without a bias, but for
/// the rounding of the vectors, which is as large as it should be.
#[test]
fn packed_weights_multiply_as_their_numbers() {
    for (form, [b, d_out, d_in]) in [
        (Form::Int8, [1, 1, 4]),
        (Form::Int8, [1, 70, 64]),
        (Form::Int8, [3, 300, 1536]),
        (Form::Int8, [8, 33, 76]),
        (Form::Int8, [20, 40, 128]),
        (Form::Int4, [1, 1, 32]),
        (Form::Int4, [1, 71, 96]),
        (Form::Int4, [3, 300, 576]),
        (Form::Int4, [8, 33, 160]),
        (Form::Int4, [20, 40, 128]),
    ] {
        let weight = random(1, &[d_out, d_in], 1.0);
        let (u, x) = (random(2, &[b, d_in], 2.0), random(3, &[b, d_out], 1.0));
        for bias in [None, Some(random(4, &[d_out], 1.0))] {
            let packed = Weight::<Flex>::Float(tensor(weight.clone())).to_form(form);
            assert_eq!(packed.form(), form);
            let (_, held) = values(packed.to_float(DType::F32));
            let projection = Projection {
                weight: packed,
                bias: bias.clone().map(tensor),
            };
            let input = Input::from(tensor(u.clone()));
            let found = values(out_of(tensor(x.clone()), vec![(input, projection)]));
            let name = format!("{b} vectors of {d_in} to {d_out}, {form:?}");
            let (mut squares, mut predicted) = (0.0, 0.0);
            for (i, found) in found.1.iter().enumerate() {
                let (u, row) = (&u.1[i / d_out * d_in..], &held[i % d_out * d_in..]);
                let (u, row) = (&u[..d_in], &row[..d_in]);
                let products = u.iter().zip(row).map(|(u, w)| u * w);
                let beside = x.1[i] + bias.as_ref().map_or(0.0, |(_, bias)| bias[i % d_out]);
                let apart = found - products.clone().sum::<f64>() - beside;
                let (most, square) = rounding(row, u);
                // Of the sums in f32.
                let most = most + 5e-7 * (products.map(f64::abs).sum::<f64>() + beside.abs());
                assert!(apart.abs() <= most, "{name}: {i} is off by {apart:e}");
                squares += apart * apart;
                predicted += square;
            }
            // Those of a few numbers are what chance makes them.
            if d_out * d_in > 100_000 {
                let ratio = squares / predicted;
                assert!(
                    (0.7..1.4).contains(&ratio),
                    "{name}: {ratio} of the squares"
                );
            }
        }
    }
}

/// The bits of a row do not depend on the other rows.
#[test]
fn a_vector_alone_is_as_in_a_batch() {
    for (form, d_in) in [(Form::Int8, 76), (Form::Int8, 1100), (Form::Int4, 576)] {
        let (b, d_out) = (20, 70);
        let numbers = Numbers::new(2, d_out, d_in, form);
        let u = tensor::<Flex, 2>(random(1, &[b, d_in], 2.0));
        let times = |u: Tensor<Flex, 2>| {
            let x = Tensor::zeros([u.dims()[0], d_out], &Default::default());
            values(out_of(x, vec![(u.into(), numbers.projection())])).1
        };
        let together = times(u.clone());
        for (row, together) in together.chunks(d_out).enumerate() {
            let alone = times(u.clone().narrow(0, row, 1));
            assert_eq!(alone, together, "row {row} of {d_in}, {form:?}");
        }
    }
}

/// Of products with vectors in 16 bits. Where the largest number of a vector is `c` times its root mean square, a product
/// is off by `c / (32767 sqrt(12))` of itself on average: by 3.5e-5 for 4.
const ROUNDED_TOLERANCE: f64 = 5e-5;

/// A row's length, rows of each weight, and vectors; those of SmolLM2's MLP last.
const BLOCKS: [(usize, &[usize], usize); 4] = [
    (4, &[1], 1),
    (12, &[7, 20], 2),
    (64, &[33, 64, 5], 9),
    (576, &[1536, 1536], 1),
];

/// What a projection on any backend is made of, and the weight's numbers, in f64, as its form holds them.
struct Numbers {
    weight: Values,
    held: Values,
    bias: Option<Values>,
    form: Form,
}

impl Numbers {
    fn new(seed: u64, d_out: usize, d_in: usize, form: Form) -> Self {
        let weight = random(seed, &[d_out, d_in], 1.0);
        let packed = Weight::<Flex>::Float(tensor(weight.clone())).to_form(form);
        let bias = seed.is_multiple_of(2);
        Self {
            held: match form {
                Form::Float => weight.clone(),
                Form::Int8 | Form::Int4 => values(packed.to_float(DType::F32)),
            },
            weight,
            bias: bias.then(|| random(seed + 1, &[d_out], 1.0)),
            form,
        }
    }

    fn projection<B: KernelBackend>(&self) -> Projection<B> {
        let weight = Weight::Float(tensor(self.weight.clone()));
        Projection {
            weight: weight.to_form(self.form),
            bias: self.bias.clone().map(tensor),
        }
    }

    /// `W u + bias` of one row `u`, with `W` in rows.
    fn times(&self, u: &[f64]) -> Vec<f64> {
        let rows = self.held.1.chunks(u.len()).enumerate();
        let product = |(i, row): (usize, &[f64])| {
            let sum: f64 = row.iter().zip(u).map(|(w, u)| w * u).sum();
            sum + self.bias.as_ref().map_or(0.0, |(_, bias)| bias[i])
        };
        rows.map(product).collect()
    }
}

/// `x`, one row, through the normalisation by its equation.
fn normalised(x: &[f64], gamma: &[f64], beta: Option<&[f64]>, epsilon: f64) -> Vec<f64> {
    let d = x.len() as f64;
    let mean = beta.map_or(0.0, |_| x.iter().sum::<f64>() / d);
    let square: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
    let scale = 1.0 / (square / d + epsilon).sqrt();
    let shift = |i: usize| beta.map_or(0.0, |beta| beta[i]);
    let both = x.iter().zip(gamma).enumerate();
    both.map(|(i, (x, gamma))| (x - mean) * scale * gamma + shift(i))
        .collect()
}

fn activated(v: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Identity => v,
        Activation::GeluNew => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            0.5 * v * (1.0 + inner.tanh())
        }
        Activation::Silu => v / (1.0 + (-v).exp()),
    }
}

/// Layer and root-mean-square normalisation, every activation, weights in every form.
#[test]
fn projections_into_are_their_equation() {
    fn check<B: KernelBackend>(in_floats: f64, packed: f64) {
        const EPSILON: f64 = 1e-2;
        let activations = [Activation::Silu, Activation::Identity, Activation::GeluNew];
        for (d, widths, b) in BLOCKS {
            for (form, centred) in [
                (Form::Float, false),
                (Form::Float, true),
                (Form::Int8, false),
                (Form::Int8, true),
                (Form::Int4, false),
            ] {
                let (x, gamma) = (random(1, &[b, d], 2.0), random(2, &[d], 1.0));
                let beta = centred.then(|| random(3, &[d], 1.0));
                let each = (4..).zip(widths);
                let each: Vec<_> = each
                    .map(|(seed, &width)| Numbers::new(seed, width, d, form))
                    .collect();
                let norm = Normalisation::<B> {
                    gamma: tensor(gamma.clone()),
                    beta: beta.clone().map(tensor),
                    epsilon: EPSILON,
                };
                let projections = each.iter().map(Numbers::projection).zip(activations);
                let found = into(tensor(x.clone()), norm, projections.collect());
                for ((found, numbers), activation) in found.into_iter().zip(&each).zip(activations)
                {
                    let row = |x: &[f64]| {
                        let beta = beta.as_ref().map(|(_, beta)| &beta[..]);
                        let y = numbers.times(&normalised(x, &gamma.1, beta, EPSILON));
                        y.into_iter()
                            .map(|v| activated(v, activation))
                            .collect::<Vec<_>>()
                    };
                    let expected = x.1.chunks(d).flat_map(row).collect();
                    let shape = vec![b, numbers.weight.0[0]];
                    let tolerance = if form == Form::Float {
                        in_floats
                    } else {
                        packed
                    };
                    let name = format!("{b} of {d}, {form:?}, centred {centred}, {activation:?}");
                    tests::assert_close(&name, values(found), (shape, expected), tolerance);
                }
            }
        }
    }
    check::<NdArray64>(1e-6, 1e-6);
    check::<Flex>(F32_TOLERANCE, ROUNDED_TOLERANCE);
}

/// Inputs with and without a second factor, alone and beside each other.
#[test]
fn projections_out_of_are_their_equation() {
    fn check<B: KernelBackend>(in_floats: f64, packed: f64) {
        for (d, widths, b) in BLOCKS {
            for (form, gated) in [
                (Form::Float, [true; 3]),
                (Form::Int8, [true; 3]),
                (Form::Int8, [false, true, false]),
                (Form::Int4, [true; 3]),
                (Form::Int4, [false, true, false]),
            ] {
                let x = random(1, &[b, d], 2.0);
                let each = (4..).zip(widths).zip(gated);
                let each: Vec<_> = each
                    .map(|((seed, &width), gated)| {
                        let width = width.next_multiple_of(4);
                        let u = random(seed + 10, &[b, width], 1.0);
                        let gate = gated.then(|| random(seed + 20, &[b, width], 1.0));
                        (u, gate, Numbers::new(seed, d, width, form))
                    })
                    .collect();
                let inputs = each.iter().map(|(u, gate, numbers)| {
                    let input = Input {
                        u: tensor(u.clone()),
                        gate: gate.clone().map(tensor),
                    };
                    (input, numbers.projection::<B>())
                });
                let found = out_of(tensor(x.clone()), inputs.collect());
                let mut expected = x.1;
                for (u, gate, numbers) in &each {
                    let width = u.1.len() / b;
                    for row in 0..b {
                        let at = |i| row * width + i;
                        let factor = |i| gate.as_ref().map_or(1.0, |(_, gate)| gate[at(i)]);
                        let u: Vec<_> = (0..width).map(|i| u.1[at(i)] * factor(i)).collect();
                        let terms = numbers.times(&u).into_iter();
                        let row = expected[row * d..][..d].iter_mut();
                        row.zip(terms).for_each(|(y, term)| *y += term);
                    }
                }
                let tolerance = if form == Form::Float {
                    in_floats
                } else {
                    packed
                };
                let name = format!("{b} of {widths:?} to {d}, {form:?}, gated {gated:?}");
                tests::assert_close(&name, values(found), (vec![b, d], expected), tolerance);
            }
        }
    }
    check::<NdArray64>(1e-6, 1e-6);
    check::<Flex>(F32_TOLERANCE, ROUNDED_TOLERANCE);
}
