//! The kernels and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, with_rows};
use crate::cube::rows::{View, view};
use crate::cube::{address_type, empty, vector_size};

const UNITS: usize = 256;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    /// Whether the pairs are turned back.
    back: bool,
    h: usize,
    /// Pairs of a head.
    r: usize,
    /// Units of a head, and those of them that turn.
    units: usize,
    turning: usize,
}

/// The neighbouring numbers of an array from `at` on.
#[cube]
fn read<N: Size>(from: &Array<f32>, at: usize) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for lane in 0..N::value() {
        values[lane] = from[at + lane];
    }
    values
}

/// Where a head begins.
#[cube]
fn head_of(of: View, batch: usize, token: usize, head: usize) -> usize {
    batch * of.batch + token * of.row + head * of.group
}

/// Neighbouring pairs, the first numbers of each and the second.
#[derive(CubeType)]
struct Pairs<F: Float, N: Size> {
    first: Vector<F, N>,
    second: Vector<F, N>,
}

/// The pairs turned by the angles from `at` on, or back by them.
#[cube]
fn turn<F: Float, N: Size>(
    first: Vector<F, N>,
    second: Vector<F, N>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    at: usize,
    #[comptime] back: bool,
) -> Pairs<F, N> {
    let (cos, mut sin) = (read::<N>(cos_lr, at), read::<N>(sin_lr, at));
    if comptime!(back) {
        sin = Vector::<f32, N>::new(0.0f32) - sin;
    }
    let first = Vector::<f32, N>::cast_from(first);
    let second = Vector::<f32, N>::cast_from(second);
    Pairs::<F, N> {
        first: Vector::cast_from(first * cos - second * sin),
        second: Vector::cast_from(second * cos + first * sin),
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate_kernel<F: Float, N: Size>(
    x_blhp: &Array<Vector<F, N>>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    y_blhp: &mut Array<Vector<F, N>>,
    b: u32,
    x: View,
    y: View,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let unit = ABSOLUTE_POS % plan.units;
    let head = ABSOLUTE_POS / plan.units % plan.h;
    let token = ABSOLUTE_POS / comptime!(plan.units * plan.h);
    if token >= b as usize * x.count {
        terminate!();
    }
    let (batch, t) = (token / x.count, token % x.count);
    let from = head_of(x, batch, t, head);
    let to = head_of(y, batch, t, head);
    let place = unit * N::value();
    if unit < plan.turning {
        let second = place + plan.r;
        let (x1, x2) = (
            x_blhp[(from + place) / N::value()],
            x_blhp[(from + second) / N::value()],
        );
        let turned = turn(x1, x2, cos_lr, sin_lr, t * plan.r + place, plan.back);
        y_blhp[(to + place) / N::value()] = turned.first;
        y_blhp[(to + second) / N::value()] = turned.second;
    } else {
        let place = place + plan.r;
        y_blhp[(to + place) / N::value()] = x_blhp[(from + place) / N::value()];
    }
}

/// The same where `x` lies, for the units that turn.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate_in_place_kernel<F: Float, N: Size>(
    x_blhp: &mut Array<Vector<F, N>>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    b: u32,
    x: View,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let unit = ABSOLUTE_POS % plan.turning;
    let head = ABSOLUTE_POS / plan.turning % plan.h;
    let token = ABSOLUTE_POS / comptime!(plan.turning * plan.h);
    if token >= b as usize * x.count {
        terminate!();
    }
    let (batch, t) = (token / x.count, token % x.count);
    let from = head_of(x, batch, t, head);
    let place = unit * N::value();
    let (at1, at2) = (
        (from + place) / N::value(),
        (from + place + plan.r) / N::value(),
    );
    let angles = t * plan.r + place;
    let turned = turn(x_blhp[at1], x_blhp[at2], cos_lr, sin_lr, angles, plan.back);
    x_blhp[at1] = turned.first;
    x_blhp[at2] = turned.second;
}

/// For `h` heads of tensors that a unit accesses alike, and how many of their numbers it takes at a time.
fn plan<R: CubeRuntime>(
    tensors: &[&CubeTensor<R>],
    h: usize,
    r: usize,
    back: bool,
) -> (Plan, usize) {
    let p = tensors[0].meta.shape()[3];
    let mut lanes = vector_size(tensors);
    while !r.is_multiple_of(lanes) {
        lanes /= 2;
    }
    let plan = Plan {
        back,
        h,
        r,
        units: (p - r) / lanes,
        turning: r / lanes,
    };
    (plan, lanes)
}

/// See [`rotary_of_heads`](super::super::rotary_of_heads()); nothing else holds `x`.
pub(super) fn rotate_in_place<R: CubeRuntime>(
    x: CubeTensor<R>,
    [cos, sin]: [CubeTensor<R>; 2],
    heads: usize,
) -> CubeTensor<R> {
    let x = with_rows(x);
    let [b, l, _, _]: [usize; 4] = x.meta.shape().dims();
    let (plan, lanes) = plan(&[&x], heads, cos.meta.shape()[1], false);
    let [across, down] = cubes((b * l * heads * plan.turning).div_ceil(UNITS));
    let (width, dtype) = (address_type(&[&x]), x.dtype);
    // SAFETY: units beyond the last token leave, and the others read and write their own numbers of a head.
    unsafe {
        rotate_in_place_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            lanes,
            x.clone().into_array_arg(),
            into_contiguous(cos).into_array_arg(),
            into_contiguous(sin).into_array_arg(),
            b as u32,
            view(&x),
            plan,
            dtype.into(),
        );
    }
    x
}

/// See [`rotary`](super::super::rotary()); `back` turns the other way.
pub(super) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    [cos, sin]: [CubeTensor<R>; 2],
    back: bool,
) -> CubeTensor<R> {
    let x = with_rows(x);
    let [b, l, h, p]: [usize; 4] = x.meta.shape().dims();
    let r = cos.meta.shape()[1];
    let y = empty(&x, [b, l, h, p], x.dtype);
    let (plan, lanes) = plan(&[&x, &y], h, r, back);
    let [across, down] = cubes((b * l * h * plan.units).div_ceil(UNITS));
    let (width, dtype) = (address_type(&[&x, &y]), x.dtype);
    let of_x = view(&x);
    // SAFETY: units beyond the last token leave, and the others read and write their own numbers of a head,
    // which are inside the shapes that `rotary` has checked.
    unsafe {
        rotate_kernel::launch_unchecked::<R>(
            &y.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            lanes,
            x.into_array_arg(),
            into_contiguous(cos).into_array_arg(),
            into_contiguous(sin).into_array_arg(),
            y.clone().into_array_arg(),
            b as u32,
            of_x,
            view(&y),
            plan,
            dtype.into(),
        );
    }
    y
}
