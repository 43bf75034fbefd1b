//! What each cube of a walk back adds up for the gradients to the gate's bias and the skip.

use cubecl::prelude::*;

use super::backward::PLANES;
use super::product::{PLANE, Product};

/// Planes of which each has 16 of a chunk's 64 tokens.
const DOWN: usize = 4;

/// Sums over the tokens, for the bias.
#[derive(CubeType)]
pub struct Shares {
    /// For each of those planes and each feature, in shared memory: registers are what decides how many
    /// cubes fit.
    bias: SharedMemory<f32>,
    #[cube(comptime)]
    p: usize,
}

#[cube]
impl Shares {
    /// Zeros, for `p` features. The cube passes a barrier before it adds to them.
    pub fn new(#[comptime] p: usize) -> Shares {
        let mut bias = SharedMemory::<f32>::new(comptime!(DOWN * p));
        for i in range_stepped(
            UNIT_POS as usize,
            comptime!(DOWN * p),
            comptime!(PLANES * PLANE),
        ) {
            bias[i] = 0.0f32;
        }
        Shares { bias, p }
    }

    /// Adds the gradients to the gate's input, 64 tokens by p.
    pub fn add(&mut self, gradients: &Product) {
        let lane = UNIT_POS_PLANE as usize;
        #[unroll]
        for j in 0..gradients.across() {
            let both = gradients.get(comptime!(2 * j)) + gradients.get(comptime!(2 * j + 1));
            let mut sum_0 = both[0];
            let mut sum_1 = both[1];
            // The units four apart have the same columns.
            #[unroll]
            for step in 2..5u32 {
                sum_0 += plane_shuffle_xor(sum_0, comptime!(1u32 << step));
                sum_1 += plane_shuffle_xor(sum_1, comptime!(1u32 << step));
            }
            if gradients.busy && lane < 4 {
                let row = gradients.row(0usize) / 16;
                let at = row * self.p + gradients.column(comptime!(2 * j));
                self.bias[at] += sum_0;
                self.bias[at + 1] += sum_1;
            }
        }
    }

    /// Adds up all planes', always in the same order, and writes them from `first` on: one for each of the p
    /// features, and after them what the units have for the `skip`. The cube has passed a barrier before.
    pub fn write(&self, skip: f32, to: &mut Tensor<f32>, first: usize) {
        let unit = UNIT_POS as usize;
        let p = comptime!(self.p);
        let mut skips = SharedMemory::<f32>::new(PLANES);
        let skip = plane_sum(skip);
        if UNIT_POS_PLANE == 0 {
            skips[unit / PLANE] = skip;
        }
        sync_cube();
        if unit < p {
            let mut sum = 0.0f32;
            #[unroll]
            for row in 0..DOWN {
                sum += self.bias[comptime!(row * p) + unit];
            }
            to[first + unit] = sum;
        }
        if unit == 0 {
            let mut sum = 0.0f32;
            #[unroll]
            for plane in 0..PLANES {
                sum += skips[plane];
            }
            to[first + p] = sum;
        }
    }
}
