//! CubeCL kernels, in one launch or two. One cube for each head and sequence goes over the tokens in tiles and keeps
//! the running maximum and sums of the softmax (arXiv 2205.14135, section 3.1). If there are many tokens, several cubes
//! share them, and a second launch combines their results.

mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use self::kernels::{Plan, UNITS, attend, combine};
use super::{AttentionStep, Cache, Gap, NewToken, reference};
use crate::cube::launch_cache::{ARRAY, Described, Launcher, array, launch, settings};
use crate::cube::output_pool;
use crate::cube::{address_type, computes_in_f32, empty, inner, step_counter, tensor};
use crate::dense::attention::Window;

/// Tokens that are worth a second launch.
const SHARED: usize = 1024;
/// Tokens that are worth another cube then.
const SHARE: usize = 256;
/// Cubes that a multiprocessor has at a time, of all heads.
const AT_ONCE: usize = 2;
/// Cubes that share a head's tokens where the number of multiprocessors is not known, at most.
const SHARES: usize = 32;
/// Tokens that a cache has room for after a move, at least.
const ROOM: usize = 256;
/// The same as a fraction of the tokens in the cache: one over this.
const ROOM_PART: usize = 4;

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
    /// By p.
    static COMBINE: Described<usize> = Described::default();
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
        attend_from(token, cache, h, false)
    }

    fn windowed_attention_step(
        token: NewToken<Self>,
        cache: Cache<Self>,
        h: usize,
        window: Window,
    ) -> (Tensor<Self, 2>, Cache<Self>) {
        let before = reference::before(window);
        let left = (before.tokens() > 0).then(|| cache.left(before));
        attend_from(token, left, h, true)
    }
}

/// The output, and the cache with the token.
type Attended<B> = (Tensor<B, 2>, Cache<B>);

/// Computes the attention of a token that joins the cache. `slides` says whether a token has left the cache before,
/// which is then true for all later steps.
fn attend_from<R, F, I, T>(
    token: NewToken<CubeBackend<R, F, I, T>>,
    cache: Option<Cache<CubeBackend<R, F, I, T>>>,
    h: usize,
    slides: bool,
) -> Attended<CubeBackend<R, F, I, T>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
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
        angle: token.angle,
    };
    let len = cache.as_ref().map_or(0, |cache| cache.len);
    let ([keys, values], gap) = with_room(cache, [b, d_kv / p, p], &operands.k);
    let place = Place { len, gap, slides };
    let y = step(operands, &keys, &values, place, h);
    let cache = Cache {
        keys: tensor(keys),
        values: tensor(values),
        len: len + 1,
        gap,
    };
    (tensor(y), cache)
}

/// A token's tensors on the device.
struct Operands<R: CubeRuntime> {
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    angle: usize,
}

/// Where a token joins a cache.
struct Place {
    /// Tokens before it.
    len: usize,
    gap: Gap,
    /// Whether a token is left behind for each that joins.
    slides: bool,
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

/// The output. Nothing else holds the keys and values `[b, capacity, g, p]`, which have room for the token at its place,
/// and are written to.
fn step<R: CubeRuntime>(
    inputs: Operands<R>,
    keys: &CubeTensor<R>,
    values: &CubeTensor<R>,
    Place { len, gap, slides }: Place,
    h: usize,
) -> CubeTensor<R> {
    let [b, capacity, g, p] = keys.meta.shape().dims();
    let client = keys.client.clone();
    let mut sizes = client.io_optimized_vector_sizes(keys.dtype.size());
    let together = sizes.find(|size| p.is_multiple_of(*size)).unwrap_or(1);
    let multiprocessors = client.properties().hardware.num_streaming_multiprocessors;
    let shares = shares(capacity, b * h, multiprocessors);
    let r = inputs.cos.meta.shape()[1];
    let plan = Plan {
        h,
        g,
        p,
        r,
        together,
        alone: shares == 1,
        has_gap: gap.len > 0,
        slides,
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
    let steps = step_counter::current(&output);
    launcher.array(array(&steps), Type::new(DType::U32.into()));
    launcher.array(array(keys), cached);
    launcher.array(array(values), cached);
    launcher.array(array(&parts), wide);
    launcher.scalar(1.0 / (p as f32).sqrt());
    for number in [len, capacity, gap.start, gap.len, inputs.angle] {
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
    // SAFETY: reads stay within the tokens and the gap, which the cache has room for, writes within one more; the first cube
    // of a group writes that, and no cube reads it. A step is repeated only as long as there is room.
    unsafe { launch(launcher, count, kernel, &parts) };
    if shares > 1 {
        put_together(&parts, &output, shares, p);
    }
    output
}

/// Launches [`combine`] for `parts [heads * shares, p + 2]`.
fn put_together<R: CubeRuntime>(
    parts: &CubeTensor<R>,
    output: &CubeTensor<R>,
    shares: usize,
    p: usize,
) {
    let wide = Type::new(DType::F32.into());
    let settings = settings(UNITS, AddressType::default());
    let mut launcher = Launcher::<R>::new(settings.clone());
    launcher.array(array(parts), wide);
    launcher.array(array(output), wide);
    launcher.size(shares);
    let kernel = COMBINE.with(|known| {
        known.get(output, p, |p| {
            let client = output.client.clone();
            combine::Combine::<R>::new(settings, client, ARRAY, ARRAY, (), p)
        })
    });
    let heads = parts.meta.shape()[0] / shares;
    let count = CubeCount::Static(heads as u32, 1, 1);
    // SAFETY: a cube reads its head's shares and writes its head's output.
    unsafe { launch(launcher, count, kernel, output) };
}

/// How many cubes share the tokens of each of so many heads, in a cache with room for `capacity`: the same as long as tokens
/// join the same cache.
///
/// All cubes take the same time. So their number is what the device can run at once, and no cube waits until another
/// has ended.
fn shares(capacity: usize, heads: usize, multiprocessors: Option<u32>) -> usize {
    if capacity < SHARED {
        return 1;
    }
    let most = match multiprocessors {
        Some(count) => (AT_ONCE * count as usize / heads).clamp(1, UNITS),
        None => SHARES,
    };
    most.min(capacity / SHARE)
}

/// A cache of `[b, g, p]` for each token that nothing else holds and that has room for another token, and its gap. If
/// the given cache is full, or something else holds it, its tokens are copied to a larger one without a gap. A new
/// cache has the dtype of `like`.
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

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn as_many_cubes_share_tokens_as_there_is_room_for() {
        assert_eq!(shares(768, 32, Some(132)), 1);
        assert_eq!(shares(1024, 32, Some(132)), 4);
        assert_eq!(shares(40960, 32, Some(132)), 8);
        // More heads than there is room for.
        assert_eq!(shares(40960, 512, Some(132)), 1);
        assert_eq!(shares(1 << 20, 1, Some(132)), 256);
        assert_eq!(shares(40960, 4, None), 32);
    }
}
