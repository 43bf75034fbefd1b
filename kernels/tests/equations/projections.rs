//! Weights of eight bits.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::decode::projections::{Projection, Weight, out_of};
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
            let found = out_of(tensor(x.clone()), vec![(tensor(u.clone()), projection)]);
            let projection = Projection {
                weight: Weight::<NdArray64>::Float(tensor(floats)),
                bias: bias.map(tensor),
            };
            let expected: Tensor<NdArray64, 2> =
                out_of(tensor(x.clone()), vec![(tensor(u.clone()), projection)]);
            let name = format!("{b} vectors of {d_in} to {d_out}");
            tests::assert_close(&name, values(found), values(expected), F32_TOLERANCE);
        }
    }
}
