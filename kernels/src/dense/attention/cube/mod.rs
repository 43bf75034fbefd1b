//! As one CubeCL launch: a cube a block of queries of a head walks over the keys and values that they see,
//! with the softmax's sums so far (arXiv 2307.08691, algorithm 1). No more of the weights exists than a tile.

mod mma;
mod portable;
mod variant;

use std::f32::consts::LOG2_E;

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use self::variant::Variant;
use super::{Attention, reference};
use crate::cube::rows::view;
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor, vector_size};

impl<R, F, I, T> Attention for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        if q.shape().num_elements() == 0 {
            // The output has its shape.
            q
        } else if computes_in_f32(q.dtype()) {
            tensor(forward(inner(q), inner(k), inner(v)))
        } else {
            reference::forward(q, k, v)
        }
    }
}

/// On tensor cores the largest weight of a row is between one and two to the power of minus this; weights of few bits
/// of exponent lose what is much smaller.
fn slack(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 2.0,
        _ => 8.0,
    }
}

/// Without a copy, if rows are read 16 bytes at a time.
fn in_vectors<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    if vector_size(&[&x]) < 8 {
        into_contiguous(x)
    } else {
        x
    }
}

/// See [`attention`](super::attention()): of one dtype that kernels compute with in f32, not empty.
fn forward<R: CubeRuntime>(q: CubeTensor<R>, k: CubeTensor<R>, v: CubeTensor<R>) -> CubeTensor<R> {
    let [b, l, h, p] = q.meta.shape().dims();
    let variant = Variant::of(&q);
    let [q, k, v] = match variant {
        Variant::Portable { .. } => [q, k, v],
        Variant::TensorCores { .. } => [q, k, v].map(in_vectors),
    };
    let y = empty(&q, [b, l, h, p], q.dtype);
    let scale = 1.0 / (p as f32).sqrt();
    let slack = slack(q.dtype);
    let client = q.client.clone();
    let blocks = l.div_ceil(variant.queries());
    let cubes = CubeCount::Static(h as u32, b as u32, blocks as u32);
    let (cube, width) = (variant.cube(), address_type(&[&q, &k, &v, &y]));
    let views = [&q, &k, &v].map(view);
    let [q_view, k_view, v_view] = views;
    let dtype = q.dtype.into();
    // Arrays and not tensors: a tensor's shape would be written to the device for every launch.
    let [q, k, v] = [q, k, v].map(CubeTensor::into_array_arg);
    let output = y.clone().into_array_arg();
    // SAFETY: queries beyond the last are not written; rows beyond the last are read as it, or not at all.
    match variant {
        Variant::Portable { r } => unsafe {
            portable::attend::launch_unchecked::<R>(
                &client, cubes, cube, width, q, k, v, output, scale, q_view, k_view, v_view, p, r,
                dtype,
            );
        },
        Variant::TensorCores { down } => unsafe {
            mma::attend::launch_unchecked::<R>(
                &client,
                cubes,
                cube,
                width,
                q,
                k,
                v,
                output,
                scale * LOG2_E / mma::FLOOR,
                slack / (scale * LOG2_E),
                q_view,
                k_view,
                v_view,
                p,
                down,
                dtype,
            );
        },
    }
    y
}
