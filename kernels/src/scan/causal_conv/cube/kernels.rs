//! The kernels.

use cubecl::prelude::*;

use super::{AHEAD, LANES, ROWS, STEPS};
use crate::cube::documents::{RowTokens, row_tokens, start_of};
use crate::cube::sigmoid::sigmoid;

/// Where in the tensors a unit works.
#[derive(CubeType, Clone, Copy)]
struct Place {
    batch: usize,
    /// The first of its channels.
    channel: usize,
}

/// The input at `padded` steps into the sequence and the `w - 1` inputs before it.
#[cube]
fn input<F: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    place: Place,
    padded: usize,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if padded >= w - 1 {
        value = Vector::cast_from(read(x_blc, place, padded - (w - 1)));
    } else {
        #[comptime]
        match history_bwc {
            ComptimeOption::Some(history) => {
                value = Vector::cast_from(read(history, place, padded));
            }
            ComptimeOption::None => {}
        }
    }
    value
}

/// The elements at time `t`.
#[cube]
fn read<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, place: Place, t: usize) -> Vector<F, N> {
    let at = place.batch * x.stride(0) + t * x.stride(1) + place.channel * x.stride(2);
    x[at / N::value()]
}

/// The elements at `ahead` times from `t` on, zeros from `end` on.
#[cube]
fn fetch<F: Float, N: Size>(
    to: &mut Array<Vector<F, N>>,
    x: &Tensor<Vector<F, N>>,
    place: Place,
    t: usize,
    end: usize,
    #[comptime] ahead: usize,
) {
    #[unroll]
    for i in 0..ahead {
        let mut value = Vector::<F, N>::new(F::new(0.0));
        if t + i < end {
            value = read(x, place, t + i);
        }
        to[i] = value;
    }
}

/// Whether the next [`AHEAD`] steps are read before these are computed: where half precision takes half of the registers,
/// and half as many bytes would be under way.
#[cube]
fn reads_early<F: Float>() -> comptime_type!(bool) {
    let bytes = F::type_size().comptime();
    comptime!(bytes < 4)
}

/// The taps of the unit's channels.
#[cube]
fn read_taps<W: Float, N: Size>(
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
fn read_bias<W: Float, N: Size>(
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
fn advance<N: Size>(window: &mut Array<Vector<f32, N>>, #[comptime] w: usize) {
    #[unroll]
    for k in 1..w {
        window[k - 1] = window[k - 1 + AHEAD];
    }
}

/// The first tap whose input belongs to the document of time `t`: 0 in the row's first document, whatever came before.
#[cube]
fn first_tap(
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
fn sum<N: Size>(
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

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    y_blc: &mut Tensor<Vector<F, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[comptime] _given: [bool; 3],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    let l = y_blc.shape(1);
    if place.channel >= y_blc.shape(2) || first >= l {
        terminate!();
    }
    let last = clamp_max(first + STEPS, l);
    let tokens = row_tokens(place.batch, l);

    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
    #[unroll]
    for k in 1..w {
        window[k - 1] = input(x_blc, history_bwc, place, first + k - 1, w);
    }
    let early = reads_early::<F>();
    let mut coming = Array::<Vector<F, N>>::new(AHEAD);
    if comptime!(early) {
        fetch(&mut coming, x_blc, place, first, last, AHEAD);
    }
    for t in range_stepped(first, last, AHEAD) {
        if comptime!(!early) {
            fetch(&mut coming, x_blc, place, t, last, AHEAD);
        }
        #[unroll]
        for i in 0..AHEAD {
            window[w - 1 + i] = Vector::cast_from(coming[i]);
        }
        if comptime!(early) {
            fetch(&mut coming, x_blc, place, t + AHEAD, last, AHEAD);
        }
        #[unroll]
        for i in 0..AHEAD {
            if t + i < last {
                let mut y = sum(&taps, &window, i, bias, starts_bl, tokens, t + i, w);
                if silu {
                    y *= sigmoid::<F, N>(y);
                }
                let at = place.batch * y_blc.stride(0) + (t + i) * y_blc.stride(1);
                y_blc[(at + place.channel) / N::value()] = Vector::cast_from(y);
            }
        }
        advance(&mut window, w);
    }
}

/// Of `ahead` steps from time `t` on, whose inputs and gradients to the outputs have been read, the gradients to the sums,
/// after the `w - 1` that `gradients` begins with; and the inputs, in `window` alike.
#[cube]
fn take_ahead<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    tokens: RowTokens,
    t: usize,
    taps: &Array<Vector<f32, N>>,
    bias: Vector<f32, N>,
    window: &mut Array<Vector<f32, N>>,
    gradients: &mut Array<Vector<f32, N>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    #[comptime] w: usize,
    #[comptime] ahead: usize,
    #[comptime] silu: bool,
) {
    #[unroll]
    for i in 0..ahead {
        window[w - 1 + i] = Vector::cast_from(x[i]);
        gradients[w - 1 + i] = Vector::cast_from(dy[i]);
    }
    if silu {
        #[unroll]
        for i in 0..ahead {
            let v = sum(taps, window, i, bias, starts_bl, tokens, t + i, w);
            let s = sigmoid::<F, N>(v);
            let one = Vector::<f32, N>::new(1.0f32);
            gradients[w - 1 + i] = gradients[w - 1 + i] * (s * (one + v * (one - s)));
        }
    }
}

/// The gradient to the input that meets the sums of `gradients` from `at` on through the last tap to
/// the first, of which the latest is that of time `latest`. The sum of a document that begins after `input` leaves it
/// out.
#[cube]
fn input_gradient<N: Size>(
    taps: &Array<Vector<f32, N>>,
    gradients: &Array<Vector<f32, N>>,
    at: usize,
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    latest: usize,
    input: usize,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if comptime!(starts_bl.is_some()) {
        #[unroll]
        for k in 0..w {
            // There are no sums, and gradients of 0, before the first.
            let time = max(latest, k) - k;
            if start_of(starts_bl, tokens, time) <= input {
                sum += taps[k] * gradients[at + w - 1 - k];
            }
        }
    } else {
        #[unroll]
        for k in 0..w {
            sum += taps[k] * gradients[at + w - 1 - k];
        }
    }
    sum
}

/// The gradient to `x`, and each cube's share of those to the taps and, in the last row, to the bias.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn backward_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dy_blc: &Tensor<Vector<F, N>>,
    dx_blc: &mut Tensor<Vector<F, N>>,
    shares_skc: &mut Tensor<Vector<f32, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[comptime] _given: [bool; 3],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let (l, c) = (dx_blc.shape(1), dx_blc.shape(2));
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    let zero = Vector::<f32, N>::new(0.0f32);
    let mut sums = Array::<Vector<f32, N>>::new(w + 1);
    #[unroll]
    for k in 0..w + 1 {
        sums[k] = zero;
    }

    let tokens = row_tokens(place.batch, l);
    if place.channel < c && first < l {
        let last = clamp_max(first + STEPS, l);
        let taps = read_taps::<W, N>(weight_cw, place, w);
        let bias = read_bias::<W, N>(bias_c, place);
        let mut window = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
        let mut gradients = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
        #[unroll]
        for k in 1..w {
            window[k - 1] = input(x_blc, history_bwc, place, first + k - 1, w);
            gradients[k - 1] = zero;
        }
        // The last inputs of the run meet sums after it.
        let end = last + w - 1;
        let there = clamp_max(end, l);
        let early = reads_early::<F>();
        let mut coming = Array::<Vector<F, N>>::new(AHEAD);
        let mut coming_gradients = Array::<Vector<F, N>>::new(AHEAD);
        if comptime!(early) {
            fetch(&mut coming, x_blc, place, first, there, AHEAD);
            fetch(&mut coming_gradients, dy_blc, place, first, there, AHEAD);
        }
        for t in range_stepped(first, end, AHEAD) {
            if comptime!(!early) {
                fetch(&mut coming, x_blc, place, t, there, AHEAD);
                fetch(&mut coming_gradients, dy_blc, place, t, there, AHEAD);
            }
            take_ahead(
                &coming,
                &coming_gradients,
                tokens,
                t,
                &taps,
                bias,
                &mut window,
                &mut gradients,
                starts_bl,
                w,
                AHEAD,
                silu,
            );
            if comptime!(early) {
                fetch(&mut coming, x_blc, place, t + AHEAD, there, AHEAD);
                fetch(
                    &mut coming_gradients,
                    dy_blc,
                    place,
                    t + AHEAD,
                    there,
                    AHEAD,
                );
            }
            #[unroll]
            for i in 0..AHEAD {
                if t + i < last {
                    let gradient = gradients[w - 1 + i];
                    if comptime!(starts_bl.is_some()) {
                        let first = first_tap(starts_bl, tokens, t + i, w);
                        #[unroll]
                        for k in 0..w {
                            if first <= k {
                                sums[k] += window[i + k] * gradient;
                            }
                        }
                    } else {
                        #[unroll]
                        for k in 0..w {
                            sums[k] += window[i + k] * gradient;
                        }
                    }
                    sums[w] += gradient;
                }
                if t + i + 1 >= first + w && t + i < end {
                    let at = place.batch * dx_blc.stride(0) + (t + i + 1 - w) * dx_blc.stride(1);
                    let input = t + i + 1 - w;
                    let dx =
                        input_gradient(&taps, &gradients, i, starts_bl, tokens, t + i, input, w);
                    dx_blc[(at + place.channel) / N::value()] = Vector::cast_from(dx);
                }
            }
            advance(&mut window, w);
            advance(&mut gradients, w);
        }
    }

    let mut shared = SharedMemory::<Vector<f32, N>>::new((LANES * ROWS) as usize);
    let share = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    #[unroll]
    for k in 0..w + 1 {
        shared[UNIT_POS as usize] = sums[k];
        sync_cube();
        if UNIT_POS_Y == 0 && place.channel < c {
            let mut total = zero;
            #[unroll]
            for row in 0..ROWS {
                total += shared[(row * LANES + UNIT_POS_X) as usize];
            }
            shares_skc[((share * (w + 1) + k) * c + place.channel) / N::value()] = total;
        }
        sync_cube();
    }
}

/// The gradient to the inputs before the first, which meet the first sums.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn history_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dy_blc: &Tensor<Vector<F, N>>,
    dhistory_bwc: &mut Tensor<Vector<F, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[comptime] _given: [bool; 3],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let c = dhistory_bwc.shape(2);
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    if place.channel >= c {
        terminate!();
    }
    let tokens = row_tokens(place.batch, dy_blc.shape(1));
    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(comptime!(2 * w - 2));
    let mut gradients = Array::<Vector<f32, N>>::new(comptime!(2 * w - 2));
    #[unroll]
    for k in 1..w {
        window[k - 1] = input(x_blc, history_bwc, place, k - 1, w);
        gradients[k - 1] = Vector::new(0.0f32);
    }
    let ahead = comptime!(w - 1);
    let l = dy_blc.shape(1);
    let mut x = Array::<Vector<F, N>>::new(ahead);
    let mut dy = Array::<Vector<F, N>>::new(ahead);
    fetch(&mut x, x_blc, place, 0usize, l, ahead);
    fetch(&mut dy, dy_blc, place, 0usize, l, ahead);
    take_ahead(
        &x,
        &dy,
        tokens,
        0usize,
        &taps,
        bias,
        &mut window,
        &mut gradients,
        starts_bl,
        w,
        ahead,
        silu,
    );
    #[unroll]
    for t in 0..ahead {
        let at = (place.batch * (w - 1) + t) * c + place.channel;
        // It belongs to the row's first document.
        let dhistory = input_gradient(&taps, &gradients, t, starts_bl, tokens, t, 0usize, w);
        dhistory_bwc[at / N::value()] = Vector::cast_from(dhistory);
    }
}
