//! The kernel and its launch.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, with_rows};
use crate::cube::reduce::{FOLDERS, Fold, in_two_steps};
use crate::cube::{address_type, empty, vector_size};
use crate::losses::divergence::likeliest::LEAST;

/// Units of a cube at most: so many that few rows are under way at once, which a cache then holds.
const UNITS: usize = 1024;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    units: usize,
    k: usize,
    /// Bits of a logit that can differ from those of another, the highest ones of its f32.
    bits: u32,
    has_others: bool,
}

fn units<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    let most = client.properties().hardware.max_units_per_cube as usize;
    most.min(UNITS) / FOLDERS * FOLDERS
}

/// Whether a cube has memory for two numbers of each unit, one of each folder and three of each of `k` ids.
pub(super) fn fits_shared_memory<R: CubeRuntime>(client: &ComputeClient<R>, k: usize) -> bool {
    let numbers = 2 * units(client) + FOLDERS + 3 * k;
    numbers * size_of::<f32>() <= client.properties().hardware.max_shared_memory_size
}

/// A number of the highest `bits` bits of an f32, in the order of such numbers.
#[cube]
fn key_of(x: f32, #[comptime] bits: u32) -> u32 {
    let pattern = u32::reinterpret(x);
    let mut key = pattern | 0x8000_0000u32;
    if pattern >= 0x8000_0000u32 {
        // All its bits turned over.
        key = pattern ^ 0xffff_ffffu32;
    }
    key >> comptime!(32 - bits)
}

/// How many of a row's logits, from `first` on, have a key of `least` or more.
#[cube]
fn count_of<F: Float, N: Size>(
    logits_tv: &Tensor<Vector<F, N>>,
    first: usize,
    turns: usize,
    least: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] plan: Plan,
) -> u32 {
    let mut count = 0u32;
    for turn in 0..turns {
        let logits = Vector::<f32, N>::cast_from(logits_tv[first + turn * comptime!(plan.units)]);
        #[unroll]
        for lane in 0..N::value() {
            if key_of(logits[lane], comptime!(plan.bits)) >= least {
                count += 1u32;
            }
        }
    }
    in_two_steps(count, shared, Fold::Sum, comptime!(plan.units))
}

/// How many of a row's logits have the key `equal`, with an id below `bound`.
#[cube]
fn count_below<F: Float, N: Size>(
    logits_tv: &Tensor<Vector<F, N>>,
    first: usize,
    turns: usize,
    equal: u32,
    bound: usize,
    shared: &mut SharedMemory<u32>,
    #[comptime] plan: Plan,
) -> u32 {
    let mut count = 0u32;
    for turn in 0..turns {
        let logits = Vector::<f32, N>::cast_from(logits_tv[first + turn * comptime!(plan.units)]);
        let id = (turn * comptime!(plan.units) + UNIT_POS as usize) * N::value();
        #[unroll]
        for lane in 0..N::value() {
            if key_of(logits[lane], comptime!(plan.bits)) == equal && id + lane < bound {
                count += 1u32;
            }
        }
    }
    in_two_steps(count, shared, Fold::Sum, comptime!(plan.units))
}

#[cube]
fn at_least(log: f32) -> f32 {
    let mut kept = log;
    // NaN stays NaN.
    if log < LEAST {
        kept = LEAST.runtime();
    }
    kept
}

/// The likeliest ids of rows, and the logarithms of their probabilities and of the others'.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, N: Size>(
    logits_tv: &Tensor<Vector<F, N>>,
    ids_tk: &mut Array<i32>,
    log_q_tk: &mut Array<f32>,
    log_rest_t: &mut Array<f32>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let token = CUBE_POS;
    if token >= logits_tv.shape(0) {
        terminate!();
    }
    let (units, k) = comptime!((plan.units, plan.k));
    let unit = UNIT_POS as usize;
    let v = logits_tv.shape(1);
    let turns = (v / N::value() + comptime!(units - 1) - unit) / units;
    let first = token * logits_tv.stride(0) / N::value() + unit;
    let mut sums = SharedMemory::<f32>::new(units);
    let mut counts = SharedMemory::<u32>::new(units);

    let mut largest = f32::MIN.runtime();
    for turn in 0..turns {
        let logits = Vector::<f32, N>::cast_from(logits_tv[first + turn * units]);
        #[unroll]
        for lane in 0..N::value() {
            largest = max(largest, logits[lane]);
        }
    }
    let largest = in_two_steps(largest, &mut sums, Fold::Largest, units);

    // The largest key that k logits reach or more.
    let mut least = 0u32;
    let mut reached = v as u32;
    let mut bit = comptime!(1u32 << (plan.bits - 1)).runtime();
    while bit > 0u32 {
        let next = least | bit;
        let count = count_of::<F, N>(logits_tv, first, turns, next, &mut counts, plan);
        if count >= comptime!(k as u32) {
            least = next;
            reached = count;
        }
        bit >>= 1u32;
    }
    // Of the ids whose logit has this key those below a bound are chosen.
    let mut bound = v;
    if reached > comptime!(k as u32) {
        let above = count_of::<F, N>(logits_tv, first, turns, least + 1, &mut counts, plan);
        let wanted = comptime!(k as u32) - above;
        let mut low = 0usize.runtime();
        while bound - low > 1 {
            let middle = (low + bound) / 2;
            let count =
                count_below::<F, N>(logits_tv, first, turns, least, middle, &mut counts, plan);
            if count >= wanted {
                bound = middle;
            } else {
                low = middle;
            }
        }
    }

    let mut own = 0u32;
    let mut others = 0.0f32;
    let mut top = 0.0f32;
    for turn in 0..turns {
        let logits = Vector::<f32, N>::cast_from(logits_tv[first + turn * units]);
        let below = logits - Vector::<f32, N>::new(largest);
        let exponentials = Vector::exp(below);
        let id = (turn * units + unit) * N::value();
        #[unroll]
        for lane in 0..N::value() {
            let key = key_of(logits[lane], comptime!(plan.bits));
            if key > least || (key == least && id + lane < bound) {
                own += 1u32;
                top += exponentials[lane];
            } else {
                others += exponentials[lane];
            }
        }
    }
    let others = in_two_steps(others, &mut sums, Fold::Sum, units);
    let total = others + in_two_steps(top, &mut sums, Fold::Sum, units);
    let log_total = total.ln();

    // Where each unit's chosen ids begin: sums over equal parts of the units, and within them.
    counts[unit] = own;
    sync_cube();
    let part = comptime!(units / FOLDERS);
    let mut parts = SharedMemory::<u32>::new(FOLDERS);
    if unit < FOLDERS {
        let mut sum = 0u32;
        #[unroll]
        for i in 0..part {
            let count = counts[unit * part + i];
            counts[unit * part + i] = sum;
            sum += count;
        }
        parts[unit] = sum;
    }
    sync_cube();
    let mut at = counts[unit];
    for i in 0..unit / part {
        at += parts[i];
    }
    let mut ids = SharedMemory::<u32>::new(k);
    let mut keys = SharedMemory::<u32>::new(k);
    let mut logs = SharedMemory::<f32>::new(k);
    for turn in 0..turns {
        let logits = Vector::<f32, N>::cast_from(logits_tv[first + turn * units]);
        let id = (turn * units + unit) * N::value();
        #[unroll]
        for lane in 0..N::value() {
            let key = key_of(logits[lane], comptime!(plan.bits));
            if key > least || (key == least && id + lane < bound) {
                ids[at as usize] = (id + lane) as u32;
                keys[at as usize] = key;
                logs[at as usize] = at_least(logits[lane] - largest - log_total);
                at += 1u32;
            }
        }
    }
    sync_cube();

    // The place of each among them.
    let mut i = unit;
    while i < k {
        let (id, key) = (ids[i], keys[i]);
        let mut place = 0usize.runtime();
        for j in 0..k {
            if keys[j] > key || (keys[j] == key && ids[j] < id) {
                place += 1;
            }
        }
        ids_tk[token * k + place] = id as i32;
        log_q_tk[token * k + place] = logs[i];
        i += units;
    }
    if UNIT_POS == 0 {
        let mut rest = LEAST.runtime();
        if comptime!(plan.has_others) {
            rest = at_least(others.ln() - log_total);
        }
        log_rest_t[token] = rest;
    }
}

/// Ids `[t, k]` in i32, their logarithms `[t, k]` and those of the others `[t, 1]` in f32.
pub(super) fn launch<R: CubeRuntime>(logits: CubeTensor<R>, k: usize) -> [CubeTensor<R>; 3] {
    let [t, v]: [usize; 2] = logits.meta.shape().dims();
    let logits = with_rows(logits);
    let ids = empty(&logits, [t, k], DType::I32);
    let log_q = empty(&logits, [t, k], DType::F32);
    let log_rest = empty(&logits, [t, 1], DType::F32);
    let (lanes, width) = (vector_size(&[&logits]), address_type(&[&logits]));
    let (client, dtype) = (logits.client.clone(), logits.dtype);
    let plan = Plan {
        units: units(&client),
        k,
        // A sign, an exponent of f32 and a fraction.
        bits: match dtype {
            DType::BF16 => 16,
            DType::F16 => 19,
            _ => 32,
        },
        has_others: k < v,
    };
    let [across, down] = cubes(t);
    // SAFETY: a cube reads and writes its token's rows, and a unit's places in them are below their length: `k` ids are
    // chosen, each with a place of its own.
    unsafe {
        rows_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(plan.units as u32),
            width,
            lanes,
            logits.into_tensor_arg(),
            ids.clone().into_array_arg(),
            log_q.clone().into_array_arg(),
            log_rest.clone().into_array_arg(),
            plan,
            dtype.into(),
        );
    }
    [ids, log_q, log_rest]
}
