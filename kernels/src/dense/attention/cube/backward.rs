//! The launches of the backward pass.

use std::f32::consts::LOG2_E;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Window;
use super::statistics::statistics;
use super::variant::Variant;
use super::{mma, portable, reach, rule};
use crate::cube::rows::view;
use crate::cube::tiles::SIDE;
use crate::cube::{address_type, empty, in_vectors};

/// The gradients to queries, keys and values, from `y` and `lse` of [`forward`](super::forward::forward) and from `dy`.
pub(super) fn backward<R: CubeRuntime>(
    [q, k, v]: [CubeTensor<R>; 3],
    y: CubeTensor<R>,
    lse: CubeTensor<R>,
    dy: CubeTensor<R>,
    (window, starts): (Option<Window>, Option<CubeTensor<R>>),
) -> [CubeTensor<R>; 3] {
    let ([b, l, h, p], [_, t, g, _]) = (q.meta.shape().dims(), k.meta.shape().dims());
    let variant = Variant::of(&q, mma::backward_bytes(p));
    let [q, k, v, dy] = match variant {
        Variant::Portable { .. } => [q, k, v, dy],
        Variant::TensorCores => [q, k, v, dy].map(in_vectors),
    };
    let dq = empty(&q, [b, l, h, p], q.dtype);
    let [dk, dv] = [&k, &v].map(|x| empty(x, [b, t, g, p], x.dtype));
    let (cube, width) = (variant.cube(), address_type(&[&q, &k, &v, &dy, &dq, &dk]));
    let (own, factor) = match variant {
        Variant::Portable { r } => (r * SIDE, 1.0),
        Variant::TensorCores => (mma::OWN, LOG2_E / mma::FLOOR),
    };
    let statistics = statistics(y, dy.clone(), lse, factor);
    let count = |heads: usize, rows: usize| {
        CubeCount::Static(heads as u32, b as u32, rows.div_ceil(own) as u32)
    };
    let scale = 1.0 / (p as f32).sqrt();
    let views = || [&q, &k, &v, &dy].map(view);
    let arg = |x: &CubeTensor<R>| x.clone().into_array_arg();
    let (client, dtype) = (&q.client, q.dtype.into());
    let ([q_view, k_view, v_view, dy_view], rule) = (views(), rule(window, &starts));
    let starts = || starts.as_ref().map(arg).into();
    // SAFETY: rows beyond the last are not written; they are read as the last, or not at all.
    match variant {
        Variant::Portable { r } => unsafe {
            portable::query_gradients::launch_unchecked::<R>(
                client,
                count(h, l),
                cube,
                width,
                arg(&q),
                arg(&k),
                arg(&v),
                arg(&dy),
                arg(&statistics),
                starts(),
                arg(&dq),
                scale,
                q_view,
                k_view,
                v_view,
                dy_view,
                reach(window, t),
                rule,
                p,
                r,
                dtype,
            );
        },
        Variant::TensorCores => unsafe {
            mma::query_gradients::launch_unchecked::<R>(
                client,
                count(h, l),
                cube,
                width,
                arg(&q),
                arg(&k),
                arg(&v),
                arg(&dy),
                arg(&statistics),
                starts(),
                arg(&dq),
                scale * factor,
                scale,
                q_view,
                k_view,
                v_view,
                dy_view,
                reach(window, t),
                rule,
                p,
                dtype,
            );
        },
    }
    let [q_view, k_view, v_view, dy_view] = views();
    // SAFETY: as above.
    match variant {
        Variant::Portable { r } => unsafe {
            portable::key_gradients::launch_unchecked::<R>(
                client,
                count(g, t),
                cube,
                width,
                arg(&q),
                arg(&k),
                arg(&v),
                arg(&dy),
                arg(&statistics),
                starts(),
                arg(&dk),
                arg(&dv),
                scale,
                q_view,
                k_view,
                v_view,
                dy_view,
                reach(window, t),
                rule,
                p,
                r,
                dtype,
            );
        },
        Variant::TensorCores => unsafe {
            mma::key_gradients::launch_unchecked::<R>(
                client,
                count(g, t),
                cube,
                width,
                arg(&q),
                arg(&k),
                arg(&v),
                arg(&dy),
                arg(&statistics),
                starts(),
                arg(&dk),
                arg(&dv),
                scale * factor,
                scale,
                q_view,
                k_view,
                v_view,
                dy_view,
                reach(window, t),
                rule,
                p,
                dtype,
            );
        },
    }
    [dq, dk, dv]
}
