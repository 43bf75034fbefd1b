//! The decays inside a chunk as a plane's tokens need them, made by one plane a chunk ahead.

use std::f32::consts::LN_2;

use cubecl::prelude::*;

use super::super::decay::{FOREVER, log_decay, split};
use super::forward::CHUNK;
use super::product::Pair;

/// The smallest decay is two to the power of this, which is negligible in f32 sums.
const FLOOR: f32 = -120.0;
/// Two to the power of [`FLOOR`].
const LEAST: f32 = f32::from_bits((127 - 120) << 23);
/// The factor that converts a natural logarithm to a share of the logarithm of [`LEAST`].
const SHARE: f32 = 1.0 / (FLOOR * LN_2);

type Four = Const<4>;

/// The decays of two chunks: of the one that is computed, and of the next.
///
/// The sum of the log-decays through a token is in two parts, as in [`Decays`](super::super::decay::Decays): a coarse
/// one, which is exact, and a fine one, already as a share of `LEAST`'s.
#[derive(CubeType)]
pub struct ChunkDecays {
    /// Of every two tokens: the coarse and the fine sum through the first, and through the second.
    sums: SharedMemory<Vector<f32, Four>>,
    /// The products of the decays from the chunk's start through a token.
    enters: SharedMemory<f32>,
    /// The products of the decays after a token to the chunk's end.
    leaves: SharedMemory<f32>,
}

/// What a token's sums are.
#[derive(CubeType, Clone, Copy)]
pub struct Through {
    coarse: f32,
    fine: f32,
}

/// Starts to read the `a_log` of two tokens a unit of a plane, of the chunk of a head that begins at `first_token`; from
/// its token `present` on there is no decay.
#[cube]
pub fn read_a_logs(
    to: &mut Array<f32>,
    a_log_blh: &Tensor<f32>,
    batch: usize,
    first_token: usize,
    present: usize,
    head: usize,
) {
    let first = batch * a_log_blh.stride(0)
        + first_token * a_log_blh.stride(1)
        + head * a_log_blh.stride(2);
    #[unroll]
    for i in 0..2usize {
        // Not `2 * UNIT_POS_PLANE`, of which CubeCL 0.10 makes `2 * UNIT_POS % 32` for CUDA.
        let t = UNIT_POS_PLANE as usize * 2 + i;
        let mut a_log = f32::new(FOREVER);
        if t < present {
            a_log = a_log_blh[first + t * a_log_blh.stride(1)];
        }
        to[i] = a_log;
    }
}

/// Two to the power of `FLOOR` times `share`, which is taken into 0..=1: then the device's quick power needs no guard
/// against what is too small for it.
#[cube(fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
fn power(share: f32) -> f32 {
    LEAST.runtime().powf(min(max(share, 0.0f32), 1.0f32))
}

#[cube]
impl ChunkDecays {
    pub fn new() -> ChunkDecays {
        ChunkDecays {
            sums: SharedMemory::<Vector<f32, Four>>::new_aligned(CHUNK, 16usize),
            enters: SharedMemory::<f32>::new_aligned(comptime!(2 * CHUNK), 16usize),
            leaves: SharedMemory::<f32>::new_aligned(comptime!(2 * CHUNK), 16usize),
        }
    }

    /// Makes the decays of the chunk whose `a_log`s a plane has read; `at` is 0 or 64, the first token's place.
    /// Called by one plane.
    pub fn write(&mut self, a_logs: &Array<f32>, at: usize) {
        let lane = UNIT_POS_PLANE as usize;
        let first = split(log_decay(a_logs[0]));
        let second = split(log_decay(a_logs[1]));
        let coarse = plane_exclusive_sum(first[0] + second[0]) + first[0];
        let fine = plane_exclusive_sum(first[1] + second[1]) + first[1];
        let (coarse_2, fine_2) = (coarse + second[0], fine + second[1]);
        let all_coarse = plane_shuffle(coarse_2, 31u32);
        let all_fine = plane_shuffle(fine_2, 31u32);
        let share = f32::new(SHARE);
        let mut sums = Vector::<f32, Four>::empty();
        sums[0] = coarse;
        sums[1] = fine * share;
        sums[2] = coarse_2;
        sums[3] = fine_2 * share;
        self.sums[at / 2 + lane] = sums;
        let token = at + lane * 2;
        self.enters[token] = (coarse + fine).exp();
        self.enters[token + 1] = (coarse_2 + fine_2).exp();
        self.leaves[token] = ((all_coarse - coarse) + (all_fine - fine)).exp();
        self.leaves[token + 1] = ((all_coarse - coarse_2) + (all_fine - fine_2)).exp();
    }

    /// The product of all decays of the chunk at `at`.
    pub fn whole(&self, at: usize) -> f32 {
        self.enters[at + comptime!(CHUNK - 1)]
    }

    /// The product of the decays from the chunk's start through token `t`, of the chunk at `at` as below.
    pub fn enter(&self, at: usize, t: usize) -> f32 {
        self.enters[at + t]
    }

    /// The product of the decays after token `t` to the chunk's end.
    pub fn leave(&self, at: usize, t: usize) -> f32 {
        self.leaves[at + t]
    }

    /// The products of the decays after the tokens `t` and `t + 1` to the chunk's end; backwards, from its start through
    /// them. `t` is even.
    pub fn towards(&self, at: usize, t: usize, #[comptime] backwards: bool) -> Vector<f32, Pair> {
        let mut pair = Vector::<f32, Pair>::empty();
        if comptime!(backwards) {
            pair[0] = self.enters[at + t];
            pair[1] = self.enters[at + t + 1];
        } else {
            pair[0] = self.leaves[at + t];
            pair[1] = self.leaves[at + t + 1];
        }
        pair
    }

    /// What [`ChunkDecays::within`] needs of a token.
    pub fn through(&self, at: usize, t: usize) -> Through {
        let both = self.sums.to_slice().with_vector_size::<Pair>()[at + t];
        Through {
            coarse: both[0],
            fine: both[1],
        }
    }

    /// The product of the decays in `(s, t]` and in `(s + 1, t]`, where `s` is even: 1 where these are after `t`.
    pub fn within(&self, at: usize, t: Through, s: usize) -> Vector<f32, Pair> {
        let from = self.sums[(at + s) / 2];
        let share = f32::new(SHARE);
        let mut pair = Vector::<f32, Pair>::empty();
        #[unroll]
        for i in 0..2usize {
            let coarse = t.coarse - from[comptime!(2 * i)];
            let fine = t.fine - from[comptime!(2 * i + 1)];
            pair[i] = power(coarse * share + fine);
        }
        pair
    }
}
