//! Weights of eight bits, and what stands around projections.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::decode::projections::{
    Activation, Input, Normalisation, Projection, Weight, into, out_of,
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

/// A weight in 8 bits gives what its numbers give as floats: for one vector, a few and many, with and without a bias.
#[test]
fn eight_bits_multiply_as_their_numbers() {
    for (b, d_out, d_in) in [
        (1, 1, 4),
        (1, 70, 64),
        (3, 300, 192),
        (8, 33, 76),
        (20, 40, 128),
    ] {
        let weight = random(1, &[d_out, d_in], 1.0);
        let (u, x) = (random(2, &[b, d_in], 2.0), random(3, &[b, d_out], 1.0));
        for bias in [None, Some(random(4, &[d_out], 1.0))] {
            let int8 = Weight::<Flex>::Float(tensor(weight.clone())).to_int8();
            let floats = values(int8.to_float(DType::F32));
            let projection = Projection {
                weight: int8,
                bias: bias.clone().map(tensor),
            };
            let input = Input::from(tensor(u.clone()));
            let found = out_of(tensor(x.clone()), vec![(input, projection)]);
            let projection = Projection {
                weight: Weight::<NdArray64>::Float(tensor(floats)),
                bias: bias.map(tensor),
            };
            let input = Input::from(tensor(u.clone()));
            let expected: Tensor<NdArray64, 2> =
                out_of(tensor(x.clone()), vec![(input, projection)]);
            let name = format!("{b} vectors of {d_in} to {d_out}");
            tests::assert_close(&name, values(found), values(expected), F32_TOLERANCE);
        }
    }
}

/// A row's length, rows of each weight, and vectors; those of SmolLM2's MLP last.
const BLOCKS: [(usize, &[usize], usize); 4] = [
    (4, &[1], 1),
    (12, &[7, 20], 2),
    (64, &[33, 64, 5], 9),
    (576, &[1536, 1536], 1),
];

/// Numbers, in f64, that a projection on any backend is made of: those of an 8-bit weight as the 8 bits hold them.
struct Numbers {
    weight: Values,
    bias: Option<Values>,
    int8: bool,
}

impl Numbers {
    fn new(seed: u64, d_out: usize, d_in: usize, int8: bool) -> Self {
        let mut weight = random(seed, &[d_out, d_in], 1.0);
        if int8 {
            let packed = Weight::<Flex>::Float(tensor(weight)).to_int8();
            weight = values(packed.to_float(DType::F32));
        }
        let bias = seed.is_multiple_of(2);
        Self {
            weight,
            bias: bias.then(|| random(seed + 1, &[d_out], 1.0)),
            int8,
        }
    }

    fn projection<B: KernelBackend>(&self) -> Projection<B> {
        let weight = Weight::Float(tensor(self.weight.clone()));
        Projection {
            weight: if self.int8 { weight.to_int8() } else { weight },
            bias: self.bias.clone().map(tensor),
        }
    }

    /// `W u + bias` of one row `u`, with `W` in rows.
    fn times(&self, u: &[f64]) -> Vec<f64> {
        let rows = self.weight.1.chunks(u.len()).enumerate();
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

/// Layer and root-mean-square normalisation, every activation, weights in floats and in 8 bits.
#[test]
fn projections_into_are_their_equation() {
    fn check<B: KernelBackend>(tolerance: f64) {
        const EPSILON: f64 = 1e-2;
        let activations = [Activation::Silu, Activation::Identity, Activation::GeluNew];
        for (d, widths, b) in BLOCKS {
            for (int8, centred) in [(false, false), (false, true), (true, false), (true, true)] {
                let (x, gamma) = (random(1, &[b, d], 2.0), random(2, &[d], 1.0));
                let beta = centred.then(|| random(3, &[d], 1.0));
                let each = (4..).zip(widths);
                let each: Vec<_> = each
                    .map(|(seed, &width)| Numbers::new(seed, width, d, int8))
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
                    let name =
                        format!("{b} of {d}, int8 {int8}, centred {centred}, {activation:?}");
                    tests::assert_close(&name, values(found), (shape, expected), tolerance);
                }
            }
        }
    }
    check::<NdArray64>(1e-6);
    check::<Flex>(F32_TOLERANCE);
}

/// Inputs with and without a second factor, alone and beside each other.
#[test]
fn projections_out_of_are_their_equation() {
    fn check<B: KernelBackend>(tolerance: f64) {
        for (d, widths, b) in BLOCKS {
            for (int8, gated) in [
                (false, [true; 3]),
                (true, [true; 3]),
                (true, [false, true, false]),
            ] {
                let x = random(1, &[b, d], 2.0);
                let each = (4..).zip(widths).zip(gated);
                let each: Vec<_> = each
                    .map(|((seed, &width), gated)| {
                        let width = width.next_multiple_of(4);
                        let u = random(seed + 10, &[b, width], 1.0);
                        let gate = gated.then(|| random(seed + 20, &[b, width], 1.0));
                        (u, gate, Numbers::new(seed, d, width, int8))
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
                let name = format!("{b} of {widths:?} to {d}, int8 {int8}, gated {gated:?}");
                tests::assert_close(&name, values(found), (vec![b, d], expected), tolerance);
            }
        }
    }
    check::<NdArray64>(1e-6);
    check::<Flex>(F32_TOLERANCE);
}
