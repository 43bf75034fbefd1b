//! The launch of the forward pass.

use std::f32::consts::LOG2_E;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Window;
use super::variant::Variant;
use super::{mma, portable, reach, rule};
use crate::cube::rows::view;
use crate::cube::tiles::SIDE;
use crate::cube::{address_type, empty, in_vectors};

/// On tensor cores the largest weight of a row is between one and two to the power of minus this; weights of few bits
/// of exponent lose what is much smaller.
fn slack(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 2.0,
        _ => 8.0,
    }
}

/// For the logarithms of the sums of the scores' exponentials of queries `[b, l, h, p]`: `[b, h, l]`.
pub(super) fn lse<R: CubeRuntime>(q: &CubeTensor<R>) -> CubeTensor<R> {
    let [b, l, h, _] = q.meta.shape().dims();
    empty(q, [b, h, l], DType::F32)
}

/// See [`attention_within`](super::super::attention_within): of one dtype that kernels compute with in f32, not empty;
/// with the starts of documents as [`starts`](crate::cube::documents::starts) gives them.
/// Also writes `lse`, if it is given.
pub(super) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    (window, starts): (Option<Window>, Option<CubeTensor<R>>),
    lse: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let [b, l, h, p] = q.meta.shape().dims();
    let t = k.meta.shape()[1];
    let variant = Variant::of(&q, mma::forward_bytes(p));
    let [q, k, v] = match variant {
        Variant::Portable { .. } => [q, k, v],
        Variant::TensorCores => [q, k, v].map(in_vectors),
    };
    let y = empty(&q, [b, l, h, p], q.dtype);
    let down = mma::down(l, p);
    let queries = match variant {
        Variant::Portable { r } => r * SIDE,
        Variant::TensorCores => mma::queries(down),
    };
    let cubes = CubeCount::Static(h as u32, b as u32, l.div_ceil(queries) as u32);
    let (cube, width) = (variant.cube(), address_type(&[&q, &k, &v, &y]));
    let scale = 1.0 / (p as f32).sqrt();
    let slack = slack(q.dtype);
    let [q_view, k_view, v_view] = [&q, &k, &v].map(view);
    let (client, dtype) = (q.client.clone(), q.dtype.into());
    // Arrays and not tensors: a tensor's shape would be written to the device for every launch.
    let [q, k, v] = [q, k, v].map(CubeTensor::into_array_arg);
    let output = y.clone().into_array_arg();
    let lse = lse.map(CubeTensor::into_array_arg).into();
    let rule = rule(window, &starts);
    let starts = starts.map(CubeTensor::into_array_arg).into();
    // SAFETY: queries beyond the last are not written; rows beyond the last are read as it, or not at all.
    match variant {
        Variant::Portable { r } => unsafe {
            portable::attend::launch_unchecked::<R>(
                &client,
                cubes,
                cube,
                width,
                q,
                k,
                v,
                starts,
                output,
                lse,
                scale,
                q_view,
                k_view,
                v_view,
                reach(window, t),
                rule,
                p,
                r,
                dtype,
            );
        },
        Variant::TensorCores => unsafe {
            mma::attend::launch_unchecked::<R>(
                &client,
                cubes,
                cube,
                width,
                q,
                k,
                v,
                starts,
                output,
                lse,
                scale * LOG2_E / mma::FLOOR,
                slack / (scale * LOG2_E),
                q_view,
                k_view,
                v_view,
                reach(window, t),
                rule,
                p,
                down,
                dtype,
            );
        },
    }
    y
}
