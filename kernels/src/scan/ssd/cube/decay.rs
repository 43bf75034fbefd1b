//! The decays inside a chunk, in shared memory.

use cubecl::prelude::*;

/// Log-decays are cut off here, at e^-64 = 1.6e-28: below what f32 sums of outputs can show, and
/// small enough that a chunk of 128 of them has an exact coarse sum.
const LOWEST: f32 = -64.0;

/// An `a_log` whose decay is 1.
pub const FOREVER: f32 = -1e30;

/// How many steps of the coarse part make a unit: a multiple of 2^-11 below 2^13 fits f32's 24 bits.
const STEPS: f32 = 2048.0;

/// The running sums of a chunk's log-decays, at each of its `tokens + 1` boundaries.
///
/// Kernels need the decay between two boundaries: the exponential of the difference of two sums. A difference of two
/// f32 sums would lose the precision of a weak decay after a strong one. So each log-decay is split in two: a coarse
/// part, whose sums are exact, and a fine part below 2^-12, whose sums stay so small that their rounding errors do not
/// matter.
#[derive(CubeType)]
pub struct Decays {
    coarse: SharedMemory<f32>,
    fine: SharedMemory<f32>,
    #[cube(comptime)]
    tokens: usize,
}

/// `1 / (1 + e^-x)`.
#[cube]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `-softplus(a_log)`.
///
/// The logarithm of `1 + z` is `2 atanh(z / (2 + z))` by its series: a graphics API promises its own
/// logarithm near 1 to 2^-21 only.
#[cube]
pub fn log_decay(a_log: f32) -> f32 {
    let z = (-a_log.abs()).exp();
    let w = z / (2.0 + z);
    let w2 = w * w;
    let mut series = 1.0 / 15.0 + w2 * (1.0 / 17.0);
    series = 1.0 / 13.0 + w2 * series;
    series = 1.0 / 11.0 + w2 * series;
    series = 1.0 / 9.0 + w2 * series;
    series = 1.0 / 7.0 + w2 * series;
    series = 1.0 / 5.0 + w2 * series;
    series = 1.0 / 3.0 + w2 * series;
    series = 1.0 + w2 * series;
    let softplus = max(a_log, 0.0) + 2.0 * w * series;
    max(-softplus, LOWEST)
}

/// The coarse and the fine part of a log-decay.
#[cube]
pub fn split(log: f32) -> Array<f32> {
    let coarse = (log * STEPS + 0.5).floor() / STEPS;
    let mut parts = Array::<f32>::new(2usize);
    parts[0] = coarse;
    parts[1] = log - coarse;
    parts
}

/// Starts to read two tokens' `a_log` a unit of the first plane, for [`Decays::scan`], of the chunk of a
/// head that begins at `first_token`; beyond the `present` ones there is no decay.
#[cube]
pub fn fetch(
    to: &mut Array<f32>,
    a_log_blh: &Tensor<f32>,
    batch: usize,
    first_token: usize,
    present: usize,
    head: usize,
) {
    if UNIT_POS < 32 {
        #[unroll]
        for i in 0..2usize {
            let t = 2 * UNIT_POS as usize + i;
            let mut a_log = f32::new(FOREVER);
            if t < present {
                let index = batch * a_log_blh.stride(0)
                    + (first_token + t) * a_log_blh.stride(1)
                    + head * a_log_blh.stride(2);
                a_log = a_log_blh[index];
            }
            to[i] = a_log;
        }
    }
}

#[cube]
impl Decays {
    /// Room for a chunk of `tokens`.
    pub fn new(#[comptime] tokens: usize) -> Decays {
        Decays {
            coarse: SharedMemory::<f32>::new(comptime!(tokens + 1)),
            fine: SharedMemory::<f32>::new(comptime!(tokens + 1)),
            tokens,
        }
    }

    /// Reads the chunk of a head that begins at `first_token`; from its token `present` on there is none,
    /// and no decay. The cube has at least as many units as the chunk has
    /// tokens, and passes a barrier before this (where it used the decays before) and after it.
    pub fn load(
        &mut self,
        a_log_blh: &Tensor<f32>,
        batch: usize,
        first_token: usize,
        present: usize,
        head: usize,
    ) {
        let tokens = comptime!(self.tokens);
        let unit = UNIT_POS as usize;
        if unit < tokens {
            let mut log = 0.0f32;
            if unit < present {
                let index = batch * a_log_blh.stride(0)
                    + (first_token + unit) * a_log_blh.stride(1)
                    + head * a_log_blh.stride(2);
                log = log_decay(a_log_blh[index]);
            }
            let coarse = (log * STEPS + 0.5).floor() / STEPS;
            self.coarse[unit + 1] = coarse;
            self.fine[unit + 1] = log - coarse;
        }
        sync_cube();
        let mut coarse = 0.0f32;
        let mut fine = 0.0f32;
        if unit < tokens {
            for t in 0..unit + 1 {
                coarse += self.coarse[t + 1];
                fine += self.fine[t + 1];
            }
        }
        sync_cube();
        if unit < tokens {
            self.coarse[unit + 1] = coarse;
            self.fine[unit + 1] = fine;
            if unit == 0 {
                self.coarse[0] = 0.0f32;
                self.fine[0] = 0.0f32;
            }
        }
    }

    /// What [`Decays::load`] does, for 64 tokens, without a barrier, and on a device with planes of 32:
    /// from what [`fetch`] has read.
    pub fn scan(&mut self, a_logs: &Array<f32>) {
        if UNIT_POS < 32 {
            let lane = UNIT_POS as usize;
            let log_0 = log_decay(a_logs[0]);
            let log_1 = log_decay(a_logs[1]);
            let coarse_0 = (log_0 * STEPS + 0.5).floor() / STEPS;
            let coarse_1 = (log_1 * STEPS + 0.5).floor() / STEPS;
            let fine_0 = log_0 - coarse_0;
            let fine_1 = log_1 - coarse_1;
            let coarse = plane_exclusive_sum(coarse_0 + coarse_1);
            let fine = plane_exclusive_sum(fine_0 + fine_1);
            self.coarse[2 * lane] = coarse;
            self.coarse[2 * lane + 1] = coarse + coarse_0;
            self.fine[2 * lane] = fine;
            self.fine[2 * lane + 1] = fine + fine_0;
            if lane == 31 {
                self.coarse[64] = coarse + (coarse_0 + coarse_1);
                self.fine[64] = fine + (fine_0 + fine_1);
            }
        }
    }

    /// The product of the decays after token `t` to the chunk's end; backwards, from the chunk's start
    /// through `t`.
    pub fn towards(&self, t: usize, #[comptime] backwards: bool) -> f32 {
        if comptime!(backwards) {
            self.between(0, t + 1)
        } else {
            self.between(t + 1, comptime!(self.tokens))
        }
    }

    /// The logarithm of [`Decays::between`]; above 0 where `from` is after `to`.
    fn log_between(&self, from: usize, to: usize) -> f32 {
        let coarse = self.coarse[to] - self.coarse[from];
        let fine = self.fine[to] - self.fine[from];
        coarse + fine
    }

    /// The product of the decays of the tokens from `from` to before `to`, where `from <= to`.
    pub fn between(&self, from: usize, to: usize) -> f32 {
        self.log_between(from, to).exp()
    }

    /// `L[t, s]`, the product of the decays in `(s, t]`, or 0 where s is after t; backwards `L[s, t]`.
    ///
    /// Without a branch, so that the loads and exponentials of many elements overlap.
    pub fn within(&self, t: usize, s: usize, #[comptime] backwards: bool) -> f32 {
        let nothing = f32::new(0.0);
        if comptime!(backwards) {
            let log = self.log_between(t + 1, s + 1);
            select(t <= s, min(log, nothing).exp(), nothing)
        } else {
            let log = self.log_between(s + 1, t + 1);
            select(s <= t, min(log, nothing).exp(), nothing)
        }
    }
}
