//! The kernels: a unit walks over some tokens of a few neighbouring channels.

use cubecl::prelude::*;

use super::{LANES, ROWS, STEPS};
use crate::cube::sigmoid::sigmoid;

/// Where a unit works.
#[derive(CubeType, Clone, Copy)]
struct Place {
    batch: usize,
    channel: usize,
    head: usize,
}

/// The index of a token's first channel of the place in `[b, l, h, p]` or `[b, l, h * p]`.
#[cube]
fn index<F: Float, N: Size>(of: &Tensor<Vector<F, N>>, place: Place, t: usize, p: usize) -> usize {
    let mut at = place.batch * of.stride(0) + t * of.stride(1);
    if of.rank() == 4 {
        at += place.head * of.stride(2) + place.channel % p;
    } else {
        at += place.channel;
    }
    at / N::value()
}

#[cube]
fn read<F: Float, N: Size>(
    of: &Tensor<Vector<F, N>>,
    place: Place,
    t: usize,
    p: usize,
) -> Vector<f32, N> {
    Vector::cast_from(of[index(of, place, t, p)])
}

/// The skip of a head.
#[cube]
fn read_skip<W: Float>(d_h: &Tensor<W>, head: usize) -> f32 {
    f32::cast_from(d_h[head * d_h.stride(0)])
}

#[cube]
fn read_bias<W: Float, N: Size>(
    bias_c: &ComptimeOption<Tensor<W>>,
    channel: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    #[comptime]
    match bias_c {
        ComptimeOption::Some(bias) =>
        {
            #[unroll]
            for lane in 0..N::value() {
                value[lane] = f32::cast_from(bias[(channel + lane) * bias.stride(0)]);
            }
        }
        ComptimeOption::None => {}
    }
    value
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, W: Float, N: Size>(
    y_blhp: &Tensor<Vector<F, N>>,
    x_blhp: &Tensor<Vector<F, N>>,
    d_h: &Tensor<W>,
    z_blc: &Tensor<Vector<F, N>>,
    bias_c: &ComptimeOption<Tensor<W>>,
    out_blc: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let (l, c, p) = (out_blc.shape(1), out_blc.shape(2), x_blhp.shape(3));
    let channel = ABSOLUTE_POS_X as usize * N::value();
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    if channel >= c || first >= l {
        terminate!();
    }
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel,
        head: channel / p,
    };
    let d = Vector::<f32, N>::new(read_skip(d_h, place.head));
    let bias = read_bias::<W, N>(bias_c, channel);
    for t in first..clamp_max(first + STEPS, l) {
        let skipped = read(y_blhp, place, t, p) + d * read(x_blhp, place, t, p);
        let v = read(z_blc, place, t, p) + bias;
        let at = index(out_blc, place, t, p);
        out_blc[at] = Vector::cast_from(skipped * v * sigmoid::<F, N>(v));
    }
}

/// All gradients; those to the bias and the skip as each cube's share of them, for every channel:
/// `shares [cubes, 2, c]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn backward_kernel<F: Float, W: Float, N: Size>(
    y_blhp: &Tensor<Vector<F, N>>,
    x_blhp: &Tensor<Vector<F, N>>,
    d_h: &Tensor<W>,
    z_blc: &Tensor<Vector<F, N>>,
    bias_c: &ComptimeOption<Tensor<W>>,
    dout_blc: &Tensor<Vector<F, N>>,
    dy_blhp: &mut Tensor<Vector<F, N>>,
    dx_blhp: &mut Tensor<Vector<F, N>>,
    dz_blc: &mut Tensor<Vector<F, N>>,
    shares: &mut Tensor<Vector<f32, N>>,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let (l, c, p) = (dz_blc.shape(1), dz_blc.shape(2), x_blhp.shape(3));
    let channel = ABSOLUTE_POS_X as usize * N::value();
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    let zero = Vector::<f32, N>::new(0.0f32);
    let one = Vector::<f32, N>::new(1.0f32);
    let mut sums = Array::<Vector<f32, N>>::new(2usize);
    sums[0] = zero;
    sums[1] = zero;
    if channel < c && first < l {
        let place = Place {
            batch: CUBE_POS_Z as usize,
            channel,
            head: channel / p,
        };
        let d = Vector::<f32, N>::new(read_skip(d_h, place.head));
        let bias = read_bias::<W, N>(bias_c, channel);
        for t in first..clamp_max(first + STEPS, l) {
            let x = read(x_blhp, place, t, p);
            let skipped = read(y_blhp, place, t, p) + d * x;
            let v = read(z_blc, place, t, p) + bias;
            let dout = read(dout_blc, place, t, p);
            let s = sigmoid::<F, N>(v);
            let dy = dout * v * s;
            let dz = dout * skipped * s * (one + v * (one - s));
            sums[0] += dz;
            sums[1] += dy * x;
            let at = index(dy_blhp, place, t, p);
            dy_blhp[at] = Vector::cast_from(dy);
            dx_blhp[at] = Vector::cast_from(dy * d);
            dz_blc[at] = Vector::cast_from(dz);
        }
    }

    let mut shared = SharedMemory::<Vector<f32, N>>::new((LANES * ROWS) as usize);
    let share = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    #[unroll]
    for k in 0..2usize {
        shared[UNIT_POS as usize] = sums[k];
        sync_cube();
        if UNIT_POS_Y == 0 && channel < c {
            let mut total = zero;
            #[unroll]
            for row in 0..ROWS {
                total += shared[(row * LANES + UNIT_POS_X) as usize];
            }
            shares[((share * 2 + k) * c + channel) / N::value()] = total;
        }
        sync_cube();
    }
}
