//! The kernels.
//!
//! Neighbouring units read neighbouring parts of a token's key and value. A unit reads all its parts of a tile, keys and
//! values, before it computes with any, so that they come together.

use cubecl::prelude::*;

use crate::cube::reduce::{Fold, in_two_steps};

/// Units of a cube, and tokens of a tile at most.
pub(super) const UNITS: usize = 256;
/// Keys that a unit reads parts of in a tile, at most, and as many values.
const READS: usize = 8;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub h: usize,
    pub g: usize,
    pub p: usize,
    /// Pairs that are turned.
    pub r: usize,
    /// Neighbours along p that are read together.
    pub together: usize,
    /// Whether one cube has all tokens.
    pub alone: bool,
    /// Whether there is a gap between the tokens.
    pub has_gap: bool,
    /// Whether a token is left behind in each step, so that the gap grows and not the number of tokens.
    pub slides: bool,
}

impl Plan {
    /// Units that share a token's values.
    fn lanes(self) -> usize {
        self.p / self.together
    }

    /// Tokens that all units together read at a time.
    fn slices(self) -> usize {
        UNITS / self.lanes()
    }

    /// Tokens of a tile that a unit reads parts of.
    fn reads(self) -> usize {
        (UNITS / self.slices()).min(READS)
    }

    /// Tokens of a tile.
    fn tile(self) -> usize {
        self.slices() * self.reads()
    }

    /// From the products of a token's parts to those of the next one, in shared memory: odd, so that units that each
    /// read another token do not wait for each other.
    fn pitch(self) -> usize {
        self.lanes() | 1
    }

    /// Numbers of shared memory that hold a tile's products, and later each slice's sums.
    fn scratch(self) -> usize {
        (self.tile() * self.pitch()).max(self.slices() * self.p)
    }
}

/// A dimension of a head after its rotation.
#[cube]
fn rotated<A: Float>(
    x: &Array<f32>,
    first: usize,
    i: usize,
    cos: &Array<A>,
    sin: &Array<A>,
    angle: usize,
    #[comptime] r: usize,
) -> f32 {
    let mut value = x[first + i];
    if i < r {
        let at = angle * r + i;
        value = value * f32::cast_from(cos[at]) - x[first + i + r] * f32::cast_from(sin[at]);
    } else if i < comptime!(2 * r) {
        let at = angle * r + i - r;
        value = value * f32::cast_from(cos[at]) + x[first + i - r] * f32::cast_from(sin[at]);
    }
    value
}

/// The position in the cache of the token `t`.
#[cube]
#[allow(clippy::collapsible_if)] // a kernel without a gap is compiled without the inner one
fn position(t: usize, gap_start: usize, gap_len: usize, #[comptime] plan: Plan) -> usize {
    let mut position = t;
    if comptime!(plan.has_gap) {
        if t >= gap_start {
            position += gap_len;
        }
    }
    position
}

/// Writes a head's output, or with several shares `[largest, sum, p weighted sums]` of this cube's.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend<F: Float, A: Float, N: Size>(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    cos: &Array<A>,
    sin: &Array<A>,
    steps: &Array<u32>,
    keys: &mut Array<Vector<F, N>>,
    values: &mut Array<Vector<F, N>>,
    output: &mut Array<f32>,
    scale: f32,
    len: usize,
    capacity: usize,
    gap_start: usize,
    gap_len: usize,
    angle: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
    #[define(A)] _angles: StorageType,
) {
    let (head, batch, unit) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, UNIT_POS as usize);
    let (p, together, lanes) = comptime!((plan.p, plan.together, plan.lanes()));
    let (slices, reads, pitch) = comptime!((plan.slices(), plan.reads(), plan.pitch()));
    let group = head / comptime!(plan.h / plan.g);
    let leads = head % comptime!(plan.h / plan.g) == 0;

    // The number of steps since the recorded one, if this is a repeated step.
    let since = steps[0] as usize;
    let angle = angle + since;
    let mut len = len;
    let mut gap_len = gap_len;
    if comptime!(plan.slides) {
        gap_len += since;
    } else {
        len += since;
    }

    // The token's own query, key and value.
    let mut query = SharedMemory::<f32>::new(p);
    let mut key = SharedMemory::<f32>::new(p);
    let mut value = SharedMemory::<f32>::new(p);
    let mut i = unit;
    while i < p {
        let own = (batch * comptime!(plan.g) + group) * p;
        query[i] = rotated(
            q,
            (batch * comptime!(plan.h) + head) * p,
            i,
            cos,
            sin,
            angle,
            plan.r,
        ) * scale;
        // Rounded as later steps will read it from the cache.
        key[i] = f32::cast_from(F::cast_from(rotated(k, own, i, cos, sin, angle, plan.r)));
        value[i] = f32::cast_from(F::cast_from(v[own + i]));
        i += UNITS;
    }
    sync_cube();
    let row = comptime!(plan.g * lanes);
    let first_row = batch * capacity * row + group * lanes;
    if leads && CUBE_POS_Z == 0 && unit < lanes {
        let mut new_key = Vector::<F, N>::empty();
        let mut new_value = Vector::<F, N>::empty();
        #[unroll]
        for j in 0..together {
            new_key[j] = F::cast_from(key[unit * together + j]);
            new_value[j] = F::cast_from(value[unit * together + j]);
        }
        let at = first_row + position(len, gap_start, gap_len, plan) * row + unit;
        keys[at] = new_key;
        values[at] = new_value;
    }

    let (lane, slice) = (unit % lanes, unit / lanes);
    let reads_any = slice < slices;
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut weights = SharedMemory::<f32>::new(UNITS);
    let mut scratch = SharedMemory::<f32>::new(comptime!(plan.scratch()));
    let mut own_query = Vector::<f32, N>::empty();
    let mut own_product = 0.0f32;
    #[unroll]
    for j in 0..together {
        own_query[j] = query[lane * together + j];
        own_product = fma(own_query[j], key[lane * together + j], own_product);
    }

    // The last cube begins with the token itself, the others with none.
    let mut most = f32::MIN.runtime();
    let mut total = 0.0f32;
    let mut sums = Vector::<f32, N>::new(0.0f32);
    if slice == 0 {
        scratch[lane] = own_product;
    }
    sync_cube();
    if CUBE_POS_Z == CUBE_COUNT_Z - 1 {
        most = 0.0;
        for i in 0..lanes {
            most += scratch[i];
        }
        if unit == 0 {
            total = 1.0;
        }
        if slice == 0 {
            #[unroll]
            for j in 0..together {
                sums[j] = value[lane * together + j];
            }
        }
    }
    sync_cube();

    let share = len.div_ceil(CUBE_COUNT_Z as usize);
    let begin = CUBE_POS_Z as usize * share;
    let end = clamp_max(begin + share, len);
    let mut first = begin;
    while first < end {
        // Behind the last token it is read again, with a weight of 0.
        let mut keys_read = Array::<Vector<F, N>>::new(reads);
        let mut values_read = Array::<Vector<F, N>>::new(reads);
        #[unroll]
        for i in 0..reads {
            let t = clamp_max(first + slice + i * slices, end - 1);
            let at = first_row + position(t, gap_start, gap_len, plan) * row + lane;
            keys_read[i] = keys[at];
        }
        #[unroll]
        for i in 0..reads {
            let t = clamp_max(first + slice + i * slices, end - 1);
            let at = first_row + position(t, gap_start, gap_len, plan) * row + lane;
            values_read[i] = values[at];
        }
        if reads_any {
            #[unroll]
            for i in 0..reads {
                let part = keys_read[i];
                let mut product = 0.0f32;
                #[unroll]
                for j in 0..together {
                    product = fma(own_query[j], f32::cast_from(part[j]), product);
                }
                scratch[(slice + i * slices) * pitch + lane] = product;
            }
        }
        sync_cube();
        // From here on a unit has one token, if there are as many.
        let has_token = unit < comptime!(plan.tile()) && first + unit < end;
        let mut score = f32::MIN.runtime();
        if has_token {
            score = 0.0;
            #[unroll(comptime!(lanes <= 64))]
            for i in 0..lanes {
                score += scratch[unit * pitch + i];
            }
        }
        let new_most = max(most, in_two_steps(score, &mut shared, Fold::Largest, UNITS));
        let mut weight = 0.0f32;
        if has_token {
            weight = (score - new_most).exp();
        }
        weights[unit] = weight;
        let rescale = (most - new_most).exp();
        total = total * rescale + weight;
        most = new_most;
        sync_cube();
        if reads_any {
            sums *= Vector::new(rescale);
            #[unroll]
            for i in 0..reads {
                let weight = weights[slice + i * slices];
                sums += Vector::cast_from(values_read[i]) * Vector::new(weight);
            }
        }
        first += comptime!(plan.tile());
    }
    let total = in_two_steps(total, &mut shared, Fold::Sum, UNITS);

    if reads_any {
        #[unroll]
        for j in 0..together {
            scratch[slice * p + lane * together + j] = sums[j];
        }
    }
    sync_cube();
    let mut i = unit;
    while i < p {
        let mut sum = 0.0f32;
        for slice in 0..slices {
            sum += scratch[slice * p + i];
        }
        if comptime!(plan.alone) {
            output[(batch * comptime!(plan.h) + head) * p + i] = sum / total;
        } else {
            let at = (batch * comptime!(plan.h) + head) * CUBE_COUNT_Z as usize;
            let at = (at + CUBE_POS_Z as usize) * comptime!(p + 2);
            output[at + 2 + i] = sum;
            if i == 0 {
                output[at] = most;
                output[at + 1] = total;
            }
        }
        i += UNITS;
    }
}

/// Puts the shares of `[heads, shares, p + 2]` together, [`UNITS`] at most: a cube a head. First a unit has a share, then
/// a dimension of some of the shares.
#[cube(launch_unchecked)]
pub(super) fn combine(
    parts: &Array<f32>,
    output: &mut Array<f32>,
    shares: usize,
    #[comptime] p: usize,
) {
    let unit = UNIT_POS as usize;
    let first = CUBE_POS_X as usize * shares * comptime!(p + 2);
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut weights = SharedMemory::<f32>::new(UNITS);
    let mut most = f32::MIN.runtime();
    let mut total = 0.0f32;
    if unit < shares {
        most = parts[first + unit * comptime!(p + 2)];
        total = parts[first + unit * comptime!(p + 2) + 1];
    }
    let most_of_all = in_two_steps(most, &mut shared, Fold::Largest, UNITS);
    let weight = (most - most_of_all).exp();
    weights[unit] = weight;
    // After this every unit sees the weights.
    let total = in_two_steps(total * weight, &mut shared, Fold::Sum, UNITS);

    let slices = comptime!(UNITS / p);
    let (i, slice) = (unit % p, unit / p);
    let mut sum = 0.0f32;
    if slice < slices {
        let mut share = slice;
        while share < shares {
            sum += parts[first + share * comptime!(p + 2) + 2 + i] * weights[share];
            share += slices;
        }
    }
    shared[unit] = sum;
    sync_cube();
    if unit < p {
        let mut sum = shared[unit];
        #[unroll(comptime!(slices <= 8))]
        for slice in 1..slices {
            sum += shared[slice * p + unit];
        }
        output[CUBE_POS_X as usize * p + unit] = sum / total;
    }
}
