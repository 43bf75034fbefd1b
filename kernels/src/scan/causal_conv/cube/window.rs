//! What the kernels share: reads of inputs, taps and biases, and the convolution's sum over a window of inputs.

use cubecl::prelude::*;

use super::AHEAD;
use crate::cube::documents::{RowTokens, start_of};

/// Where in the tensors a unit works.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) batch: usize,
    /// The first of its channels.
    pub(super) channel: usize,
}

/// Where the time steps of a unit's channels lie in a tensor `[b, l, c]`, in vectors. They are computed once: strides are
/// in device memory, and the compiler would read them again for every step.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Steps {
    pub(super) first: usize,
    pub(super) step: usize,
}

#[cube]
pub(super) fn steps_of<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, place: Place) -> Steps {
    let first = place.batch * x.stride(0) + place.channel * x.stride(2);
    Steps {
        first: first / N::value(),
        step: x.stride(1) / N::value(),
    }
}

/// The input at `padded` steps into the sequence and the `w - 1` inputs before it.
#[cube]
pub(super) fn input<F: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    x_steps: Steps,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    place: Place,
    padded: usize,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if padded >= w - 1 {
        value = Vector::cast_from(read(x_blc, x_steps, padded - (w - 1)));
    } else {
        #[comptime]
        match history_bwc {
            ComptimeOption::Some(history) => {
                value = Vector::cast_from(read(history, steps_of(history, place), padded));
            }
            ComptimeOption::None => {}
        }
    }
    value
}

/// The elements at time `t`.
#[cube]
fn read<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, steps: Steps, t: usize) -> Vector<F, N> {
    x[steps.first + t * steps.step]
}

/// The elements at time `t` of `l`, or zeros after those.
#[cube]
pub(super) fn read_or_zero<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    steps: Steps,
    t: usize,
    l: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if t < l {
        value = Vector::cast_from(read(x, steps, t));
    }
    value
}

/// The taps of the unit's channels.
#[cube]
pub(super) fn read_taps<W: Float, N: Size>(
    weight_cw: &Tensor<W>,
    place: Place,
    #[comptime] w: usize,
) -> Array<Vector<f32, N>> {
    let mut taps = Array::<Vector<f32, N>>::new(w);
    #[unroll]
    for k in 0..w {
        let mut tap = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..N::value() {
            let at = (place.channel + lane) * weight_cw.stride(0) + k * weight_cw.stride(1);
            tap[lane] = f32::cast_from(weight_cw[at]);
        }
        taps[k] = tap;
    }
    taps
}

#[cube]
pub(super) fn read_bias<W: Float, N: Size>(
    bias_c: &ComptimeOption<Tensor<W>>,
    place: Place,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    #[comptime]
    match bias_c {
        ComptimeOption::Some(bias) =>
        {
            #[unroll]
            for lane in 0..N::value() {
                value[lane] = f32::cast_from(bias[(place.channel + lane) * bias.stride(0)]);
            }
        }
        ComptimeOption::None => {}
    }
    value
}

/// Moves a window of `w - 1` steps and [`AHEAD`] after them on by the latter.
#[cube]
pub(super) fn advance<N: Size>(window: &mut Array<Vector<f32, N>>, #[comptime] w: usize) {
    #[unroll]
    for k in 1..w {
        window[k - 1] = window[k - 1 + AHEAD];
    }
}

/// The first tap whose input belongs to the document of time `t`: 0 in the row's first document, whatever came before.
#[cube]
pub(super) fn first_tap(
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    t: usize,
    #[comptime] w: usize,
) -> usize {
    let start = start_of(starts_bl, tokens, t);
    let whole = start + comptime!(w - 1);
    let mut first = 0usize;
    if start > 0 && whole > t {
        first = whole - t;
    }
    first
}

/// The convolution's sum at time `t` over the `w` steps of `window` from `at` on.
#[cube]
pub(super) fn sum<N: Size>(
    taps: &Array<Vector<f32, N>>,
    window: &Array<Vector<f32, N>>,
    at: usize,
    bias: Vector<f32, N>,
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    t: usize,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut sum = bias;
    if comptime!(starts_bl.is_some()) {
        let first = first_tap(starts_bl, tokens, t, w);
        #[unroll]
        for k in 0..w {
            if first <= k {
                sum += taps[k] * window[at + k];
            }
        }
    } else {
        #[unroll]
        for k in 0..w {
            sum += taps[k] * window[at + k];
        }
    }
    sum
}
