//! The kernels of the gradients.

use cubecl::prelude::*;

use super::window::{
    Place, Steps, advance, first_tap, input, read_bias, read_or_zero, read_taps, steps_of, sum,
};
use super::{AHEAD, LANES, ROWS, STEPS};
use crate::cube::documents::{RowTokens, row_tokens, start_of};
use crate::cube::sigmoid::sigmoid;

/// The gradients to `ahead` sums from time `t` on, from those to the outputs, after the `w - 1` that
/// `gradients` begins with; and the inputs at these times, in `window` alike. Zeros after the end.
#[cube]
fn read_ahead<F: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    dy_blc: &Tensor<Vector<F, N>>,
    x_steps: Steps,
    dy_steps: Steps,
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
    let l = tokens.count;
    #[unroll]
    for i in 0..ahead {
        window[w - 1 + i] = read_or_zero(x_blc, x_steps, t + i, l);
        gradients[w - 1 + i] = read_or_zero(dy_blc, dy_steps, t + i, l);
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
        let x_steps = steps_of(x_blc, place);
        let dy_steps = steps_of(dy_blc, place);
        let dx_steps = steps_of(dx_blc, place);
        let taps = read_taps::<W, N>(weight_cw, place, w);
        let bias = read_bias::<W, N>(bias_c, place);
        let mut window = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
        let mut gradients = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
        #[unroll]
        for k in 1..w {
            window[k - 1] = input(x_blc, x_steps, history_bwc, place, first + k - 1, w);
            gradients[k - 1] = zero;
        }
        // The last inputs of the run meet sums after it.
        let end = last + w - 1;
        for t in range_stepped(first, end, AHEAD) {
            read_ahead(
                x_blc,
                dy_blc,
                x_steps,
                dy_steps,
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
                    let input = t + i + 1 - w;
                    let dx =
                        input_gradient(&taps, &gradients, i, starts_bl, tokens, t + i, input, w);
                    dx_blc[dx_steps.first + input * dx_steps.step] = Vector::cast_from(dx);
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
    let x_steps = steps_of(x_blc, place);
    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(comptime!(2 * w - 2));
    let mut gradients = Array::<Vector<f32, N>>::new(comptime!(2 * w - 2));
    #[unroll]
    for k in 1..w {
        window[k - 1] = input(x_blc, x_steps, history_bwc, place, k - 1, w);
        gradients[k - 1] = Vector::new(0.0f32);
    }
    let ahead = comptime!(w - 1);
    read_ahead(
        x_blc,
        dy_blc,
        x_steps,
        steps_of(dy_blc, place),
        tokens,
        0,
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
