//! The kernel of the outputs.

use cubecl::prelude::*;

use super::window::{Place, advance, input, read_bias, read_or_zero, read_taps, steps_of, sum};
use super::{AHEAD, STEPS};
use crate::cube::documents::row_tokens;
use crate::cube::sigmoid::sigmoid;

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

    let x_steps = steps_of(x_blc, place);
    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(comptime!(w - 1 + AHEAD));
    #[unroll]
    for k in 1..w {
        window[k - 1] = input(x_blc, x_steps, history_bwc, place, first + k - 1, w);
    }
    let y_steps = steps_of(y_blc, place);
    for t in range_stepped(first, last, AHEAD) {
        #[unroll]
        for i in 0..AHEAD {
            window[w - 1 + i] = read_or_zero(x_blc, x_steps, t + i, l);
        }
        #[unroll]
        for i in 0..AHEAD {
            if t + i < last {
                let mut y = sum(&taps, &window, i, bias, starts_bl, tokens, t + i, w);
                if silu {
                    y *= sigmoid::<F, N>(y);
                }
                y_blc[y_steps.first + (t + i) * y_steps.step] = Vector::cast_from(y);
            }
        }
        advance(&mut window, w);
    }
}
