//! As one CubeCL launch, or two: a cube a head and sequence walks over the tokens in tiles, keeping what
//! the softmax of those so far needs (arXiv 2205.14135, section 3.1). Where there are many tokens, cubes share
//! them, and a second launch puts their shares together.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::{AttentionStep, Cache, Gap, NewToken, reference};
use crate::cube::launch_cache::{ARRAY, Described, Launcher, array, launch, settings};
use crate::cube::output_pool;
use crate::cube::reduce::{Fold, of_cube};
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor};
use crate::dense::attention::Window;

/// Units of a cube, and tokens of a tile.
const UNITS: usize = 256;
/// Tokens that are worth another cube.
const SHARE: usize = 1024;
/// Tokens that a cache has room for after a move, at least.
const ROOM: usize = 256;
/// And as a part of those that there are.
const ROOM_PART: usize = 4;
/// Cubes that share a head's tokens, at most.
const SHARES: usize = 32;

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    h: usize,
    g: usize,
    p: usize,
    /// Pairs that are turned.
    r: usize,
    /// Neighbours along p that are read together.
    together: usize,
    /// Whether one cube has all tokens.
    alone: bool,
    /// Whether there is a gap between the tokens.
    has_gap: bool,
}

/// What the kernel is made with.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Made {
    width: AddressType,
    plan: Plan,
    /// Of the cache.
    dtype: DType,
    angles: DType,
}

thread_local! {
    static ATTEND: Described<Made> = Described::default();
}

impl Plan {
    /// Units that share a token's values.
    fn lanes(self) -> usize {
        self.p / self.together
    }

    /// Tokens whose values are read at a time.
    fn slices(self) -> usize {
        UNITS / self.lanes()
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
    #[comptime] r: usize,
) -> f32 {
    let mut value = x[first + i];
    if i < r {
        value = value * f32::cast_from(cos[i]) - x[first + i + r] * f32::cast_from(sin[i]);
    } else if i < comptime!(2 * r) {
        value = value * f32::cast_from(cos[i - r]) + x[first + i - r] * f32::cast_from(sin[i - r]);
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
fn attend<F: Float, A: Float, N: Size>(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    cos: &Array<A>,
    sin: &Array<A>,
    keys: &mut Array<Vector<F, N>>,
    values: &mut Array<Vector<F, N>>,
    output: &mut Array<f32>,
    scale: f32,
    len: usize,
    capacity: usize,
    share: usize,
    gap_start: usize,
    gap_len: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
    #[define(A)] _angles: StorageType,
) {
    let (head, batch, unit) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, UNIT_POS as usize);
    let (p, together, lanes) = comptime!((plan.p, plan.together, plan.lanes()));
    let slices = comptime!(plan.slices());
    let group = head / comptime!(plan.h / plan.g);
    let leads = head % comptime!(plan.h / plan.g) == 0;

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
            plan.r,
        ) * scale;
        // As they are read back later.
        key[i] = f32::cast_from(F::cast_from(rotated(k, own, i, cos, sin, plan.r)));
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

    let begin = CUBE_POS_Z as usize * share;
    let end = clamp_max(begin + share, len + 1);
    let (lane, slice) = (unit % lanes, unit / lanes);
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut weights = SharedMemory::<f32>::new(UNITS);
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut most = f32::MIN.runtime();
    let mut total = 0.0f32;
    let mut tile = begin;
    while tile < end {
        let t = tile + unit;
        let mut score = f32::MIN.runtime();
        if t < len && t < end {
            score = 0.0;
            let at = first_row + position(t, gap_start, gap_len, plan) * row;
            #[unroll(comptime!(lanes <= 64))]
            for i in 0..lanes {
                let part = keys[at + i];
                #[unroll]
                for j in 0..together {
                    score = fma(query[i * together + j], f32::cast_from(part[j]), score);
                }
            }
        } else if t == len && t < end {
            score = 0.0;
            for i in 0..p {
                score = fma(query[i], key[i], score);
            }
        }
        let new_most = max(most, of_cube(score, &mut shared, Fold::Largest, UNITS));
        let mut weight = 0.0f32;
        if t < end {
            weight = (score - new_most).exp();
        }
        weights[unit] = weight;
        let rescale = (most - new_most).exp();
        // After this every unit sees the weights.
        total = total * rescale + of_cube(weight, &mut shared, Fold::Sum, UNITS);
        sums *= Vector::new(rescale);
        most = new_most;
        if slice < slices {
            let mut i = slice;
            while i < UNITS && tile + i < end {
                let t = tile + i;
                let weight = weights[i];
                if t < len {
                    let at = first_row + position(t, gap_start, gap_len, plan) * row;
                    let part = values[at + lane];
                    sums += Vector::cast_from(part) * Vector::new(weight);
                } else {
                    #[unroll]
                    for j in 0..together {
                        sums[j] += value[lane * together + j] * weight;
                    }
                }
                i += slices;
            }
        }
        sync_cube();
        tile += UNITS;
    }

    let mut parts = SharedMemory::<f32>::new(comptime!(slices * p));
    if slice < slices {
        #[unroll]
        for j in 0..together {
            parts[slice * p + lane * together + j] = sums[j];
        }
    }
    sync_cube();
    let mut i = unit;
    while i < p {
        let mut sum = 0.0f32;
        for slice in 0..slices {
            sum += parts[slice * p + i];
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

/// Puts the shares of `[heads, shares, p + 2]` together: a cube a head.
#[cube(launch_unchecked)]
fn combine(parts: &Array<f32>, output: &mut Array<f32>, shares: usize, #[comptime] p: usize) {
    let first = CUBE_POS_X as usize * shares * comptime!(p + 2);
    let mut most = parts[first];
    for share in 1..shares {
        most = max(most, parts[first + share * comptime!(p + 2)]);
    }
    let mut i = UNIT_POS as usize;
    while i < p {
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for share in 0..shares {
            let at = first + share * comptime!(p + 2);
            let weight = (parts[at] - most).exp();
            total += parts[at + 1] * weight;
            sum += parts[at + 2 + i] * weight;
        }
        output[CUBE_POS_X as usize * p + i] = sum / total;
        i += CUBE_DIM as usize;
    }
}

impl<R, F, I, T> AttentionStep for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn attention_step(
        token: NewToken<Self>,
        cache: Option<Cache<Self>>,
        h: usize,
    ) -> (Tensor<Self, 2>, Cache<Self>) {
        let ([b, width], [_, d_kv]) = (token.q.dims(), token.k.dims());
        let p = width / h;
        if !fits(&token, &cache, p) {
            return reference::step(token, cache, h);
        }
        let operands = Operands {
            q: inner(token.q),
            k: inner(token.k),
            v: inner(token.v),
            cos: inner(token.cos),
            sin: inner(token.sin),
        };
        let len = cache.as_ref().map_or(0, |cache| cache.len);
        let ([keys, values], gap) = with_room(cache, [b, d_kv / p, p], &operands.k);
        let y = step(operands, &keys, &values, len, gap, h);
        let cache = Cache {
            keys: tensor(keys),
            values: tensor(values),
            len: len + 1,
            gap,
        };
        (tensor(y), cache)
    }

    fn windowed_attention_step(
        token: NewToken<Self>,
        cache: Cache<Self>,
        h: usize,
        window: Window,
    ) -> (Tensor<Self, 2>, Cache<Self>) {
        let before = reference::before(window);
        let left = (before.tokens() > 0).then(|| cache.left(before));
        Self::attention_step(token, left, h)
    }
}

/// A token's tensors on the device.
struct Operands<R: CubeRuntime> {
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
}

/// Whether there is a kernel for heads of `p`.
fn fits<B: Backend>(token: &NewToken<B>, cache: &Option<Cache<B>>, p: usize) -> bool {
    let wide = [&token.q, &token.k, &token.v];
    let angles = [token.cos.dtype(), token.sin.dtype()];
    let cached = cache.as_ref().map(|cache| cache.keys.dtype());
    wide.iter().all(|x| x.dtype() == DType::F32)
        && p <= UNITS
        && computes_in_f32(angles[0])
        && angles[0] == angles[1]
        && cached.is_none_or(computes_in_f32)
}

/// The output. Nothing else holds the keys and values `[b, capacity, g, p]`, which have `len` tokens with a gap among
/// them and room for another, and are written to.
fn step<R: CubeRuntime>(
    inputs: Operands<R>,
    keys: &CubeTensor<R>,
    values: &CubeTensor<R>,
    len: usize,
    gap: Gap,
    h: usize,
) -> CubeTensor<R> {
    let [b, capacity, g, p] = keys.meta.shape().dims();
    let client = keys.client.clone();
    let mut sizes = client.io_optimized_vector_sizes(keys.dtype.size());
    let together = sizes.find(|size| p.is_multiple_of(*size)).unwrap_or(1);
    let shares = (len + 1).div_ceil(SHARE).min(SHARES);
    // Whole tiles each.
    let share = (len + 1).div_ceil(shares).next_multiple_of(UNITS);
    let shares = (len + 1).div_ceil(share);
    let r = inputs.cos.meta.shape()[1];
    let plan = Plan {
        h,
        g,
        p,
        r,
        together,
        alone: shares == 1,
        has_gap: gap.len > 0,
    };
    let output = output_pool::output(&inputs.q, [b, h * p], DType::F32);
    let parts = match shares {
        1 => output.clone(),
        _ => output_pool::output(&inputs.q, [b * h * shares, p + 2], DType::F32),
    };
    let made = Made {
        width: address_type(&[keys, values]),
        plan,
        dtype: keys.dtype,
        angles: inputs.cos.dtype,
    };
    let settings = settings(UNITS, made.width);
    let mut launcher = Launcher::<R>::new(settings.clone());
    let wide = Type::new(DType::F32.into());
    let cached = Type::new(made.dtype.into()).with_vector_size(together);
    for x in [inputs.q, inputs.k, inputs.v] {
        launcher.array(array(&into_contiguous(x)), wide);
    }
    for x in [inputs.cos, inputs.sin] {
        launcher.array(array(&into_contiguous(x)), Type::new(made.angles.into()));
    }
    launcher.array(array(keys), cached);
    launcher.array(array(values), cached);
    launcher.array(array(&parts), wide);
    launcher.scalar(1.0 / (p as f32).sqrt());
    for number in [len, capacity, share, gap.start, gap.len] {
        launcher.size(number);
    }
    let kernel = ATTEND.with(|known| {
        known.get(&parts, made, |made| {
            let client = client.clone();
            attend::Attend::<R>::new(
                settings,
                client,
                ARRAY,
                ARRAY,
                ARRAY,
                ARRAY,
                ARRAY,
                ARRAY,
                ARRAY,
                ARRAY,
                (),
                (),
                (),
                (),
                (),
                (),
                together,
                plan,
                made.dtype.into(),
                made.angles.into(),
            )
        })
    });
    let count = CubeCount::Static(h as u32, b as u32, shares as u32);
    // SAFETY: reads stay within `len` tokens and the gap, which the cache has room for, writes within one more; the
    // first cube of a group writes that, and no cube reads it.
    unsafe { launch(launcher, count, kernel, &parts) };
    if shares > 1 {
        // SAFETY: a cube reads its head's shares and writes its head's output.
        unsafe {
            combine::launch_unchecked::<R>(
                &client,
                CubeCount::Static((b * h) as u32, 1, 1),
                CubeDim::new_1d(64),
                parts.into_array_arg(),
                output.clone().into_array_arg(),
                shares,
                p,
            );
        }
    }
    output
}

/// A cache of `[b, g, p]` a token that nothing else holds, with room for another token: where it is full, or
/// held, its tokens move to a larger one without a gap. A new one has the dtype of `like`. With the gap that there is.
fn with_room<R, F, I, T>(
    cache: Option<Cache<CubeBackend<R, F, I, T>>>,
    [b, g, p]: [usize; 3],
    like: &CubeTensor<R>,
) -> ([CubeTensor<R>; 2], Gap)
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let capacity = |len: usize| (len + ROOM.max(len / ROOM_PART)).next_multiple_of(ROOM);
    let Some(mut cache) = cache else {
        let room = [(); 2].map(|()| empty(like, [b, capacity(0), g, p], like.dtype));
        return (room, Gap::default());
    };
    let (len, gap) = (cache.len, cache.gap);
    if len + gap.len < cache.keys.dims()[1] {
        let own = |x: &CubeTensor<R>| x.can_mut() && x.is_contiguous();
        let (keys, values) = (inner(cache.keys), inner(cache.values));
        if own(&keys) && own(&values) {
            return ([keys, values], gap);
        }
        cache = Cache {
            keys: tensor(keys),
            values: tensor(values),
            len,
            gap,
        };
    }
    let (keys, values) = cache.filled();
    let moved = [keys, values].map(|earlier| {
        let larger = empty(like, [b, capacity(len), g, p], earlier.dtype());
        let larger: Tensor<CubeBackend<R, F, I, T>, 4> = tensor(larger);
        let moved = larger.slice_assign([0..b, 0..len, 0..g, 0..p], earlier);
        into_contiguous(inner(moved))
    });
    (moved, Gap::default())
}
