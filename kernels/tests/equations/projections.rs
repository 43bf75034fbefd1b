//! Weights of eight bits.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::decode::projections::Weight;
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
