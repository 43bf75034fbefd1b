//! The kernels and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, with_rows};
use crate::cube::{address_type, empty, vector_size};

const UNITS: usize = 256;

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
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

/// Neighbouring pairs, the first numbers of each and the second.
#[derive(CubeType)]
struct Pairs<F: Float, N: Size> {
    first: Vector<F, N>,
    second: Vector<F, N>,
}

/// The pairs turned by the angles from `at` on.
#[cube]
fn turn<F: Float, N: Size>(
    first: Vector<F, N>,
    second: Vector<F, N>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    at: usize,
) -> Pairs<F, N> {
    let (cos, sin) = (read::<N>(cos_lr, at), read::<N>(sin_lr, at));
    let first = Vector::<f32, N>::cast_from(first);
    let second = Vector::<f32, N>::cast_from(second);
    Pairs::<F, N> {
        first: Vector::cast_from(first * cos - second * sin),
        second: Vector::cast_from(second * cos + first * sin),
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate_kernel<F: Float, N: Size>(
    x_blhp: &Tensor<Vector<F, N>>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    y_blhp: &mut Tensor<Vector<F, N>>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let unit = ABSOLUTE_POS % plan.units;
    let head = ABSOLUTE_POS / plan.units % plan.h;
    let token = ABSOLUTE_POS / comptime!(plan.units * plan.h);
    let l = x_blhp.shape(1);
    if token >= x_blhp.shape(0) * l {
        terminate!();
    }
    let (batch, t) = (token / l, token % l);
    let from = batch * x_blhp.stride(0) + t * x_blhp.stride(1) + head * x_blhp.stride(2);
    let to = batch * y_blhp.stride(0) + t * y_blhp.stride(1) + head * y_blhp.stride(2);
    let place = unit * N::value();
    if unit < plan.turning {
        let second = place + plan.r;
        let (x1, x2) = (
            x_blhp[(from + place) / N::value()],
            x_blhp[(from + second) / N::value()],
        );
        let turned = turn(x1, x2, cos_lr, sin_lr, t * plan.r + place);
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
    x_blhp: &mut Tensor<Vector<F, N>>,
    cos_lr: &Array<f32>,
    sin_lr: &Array<f32>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let unit = ABSOLUTE_POS % plan.turning;
    let head = ABSOLUTE_POS / plan.turning % plan.h;
    let token = ABSOLUTE_POS / comptime!(plan.turning * plan.h);
    let l = x_blhp.shape(1);
    if token >= x_blhp.shape(0) * l {
        terminate!();
    }
    let (batch, t) = (token / l, token % l);
    let from = batch * x_blhp.stride(0) + t * x_blhp.stride(1) + head * x_blhp.stride(2);
    let place = unit * N::value();
    let (at1, at2) = (
        (from + place) / N::value(),
        (from + place + plan.r) / N::value(),
    );
    let turned = turn(x_blhp[at1], x_blhp[at2], cos_lr, sin_lr, t * plan.r + place);
    x_blhp[at1] = turned.first;
    x_blhp[at2] = turned.second;
}

/// For `h` heads of tensors that a unit accesses alike, and how many of their numbers it takes at a time.
fn plan<R: CubeRuntime>(tensors: &[&CubeTensor<R>], h: usize, r: usize) -> (Plan, usize) {
    let p = tensors[0].meta.shape()[3];
    let mut lanes = vector_size(tensors);
    while !r.is_multiple_of(lanes) {
        lanes /= 2;
    }
    let plan = Plan {
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
    let (plan, lanes) = plan(&[&x], heads, cos.meta.shape()[1]);
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
            x.clone().into_tensor_arg(),
            into_contiguous(cos).into_array_arg(),
            into_contiguous(sin).into_array_arg(),
            plan,
            dtype.into(),
        );
    }
    x
}

/// See [`rotary`](super::super::rotary()).
pub(super) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
) -> CubeTensor<R> {
    let x = with_rows(x);
    let [b, l, h, p]: [usize; 4] = x.meta.shape().dims();
    let r = cos.meta.shape()[1];
    let y = empty(&x, [b, l, h, p], x.dtype);
    let (plan, lanes) = plan(&[&x, &y], h, r);
    let [across, down] = cubes((b * l * h * plan.units).div_ceil(UNITS));
    let (width, dtype) = (address_type(&[&x, &y]), x.dtype);
    // SAFETY: units beyond the last token leave, and the others read and write their own numbers of a head,
    // which are inside the shapes that `rotary` has checked.
    unsafe {
        rotate_kernel::launch_unchecked::<R>(
            &y.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            lanes,
            x.into_tensor_arg(),
            into_contiguous(cos).into_array_arg(),
            into_contiguous(sin).into_array_arg(),
            y.clone().into_tensor_arg(),
            plan,
            dtype.into(),
        );
    }
    y
}
