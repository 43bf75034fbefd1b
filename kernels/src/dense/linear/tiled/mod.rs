//! Tiled matrix products as CubeCL kernels, for GPUs without a vendor library. If the device reports matrix
//! instructions for the dtype, the planes use these (`fragments`); otherwise each unit holds sums in registers
//! (`registers`).
//!
//! Factors are read without a copy, whatever their strides. If the output has few tiles, the contracted axis is split
//! into parts, whose f32 results a second launch adds up in a fixed order. So no sum depends on which cube runs first.

mod epilogue;
mod factor;
mod fragments;
mod plan;
mod registers;

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use self::epilogue::{Epilogue, add_shares};
use self::factor::Factor;
use self::plan::{Kernel, Plan};
use super::cube::Layer;
use crate::cube::each_row::cubes;
use crate::cube::{address_type, computes_in_f32, empty, inner, own, tensor};

/// `a [m, k]` times the transpose of `b [n, k]`: `[m, n]`, on any CubeCL backend, whichever product its layers take.
/// Either may be a view of any strides. `None` for dtypes and sizes that it does not take.
///
/// # Panics
/// If the contracted sizes or the dtypes differ.
pub fn product<R, F, I, T>(
    a: Tensor<CubeBackend<R, F, I, T>, 2>,
    b: Tensor<CubeBackend<R, F, I, T>, 2>,
) -> Option<Tensor<CubeBackend<R, F, I, T>, 2>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let ([m, k], [n, of_b]) = (a.dims(), b.dims());
    assert_eq!(
        k, of_b,
        "product: the contracted sizes of [{m}, {k}] and [{n}, {of_b}] differ"
    );
    assert_eq!(a.dtype(), b.dtype(), "product: one dtype for both");
    let (a, b) = (inner(a), inner(b));
    fits(&[&a, &b]).then(|| tensor(plain(Factor::new(&a), Factor::new(&b))))
}

/// The layer's output; `None` for dtypes and sizes that it does not take.
pub(super) fn forward<R: CubeRuntime>(layer: &Layer<R>) -> Option<CubeTensor<R>> {
    if !fits(&[&layer.x, &layer.weight]) {
        return None;
    }
    let (x, weight) = (Factor::new(&layer.x), Factor::new(&layer.weight));
    let epilogue = Epilogue {
        gelu: layer.gelu,
        onto: layer.onto.is_some(),
    };
    let bias = layer.bias.clone().map(into_contiguous);
    let out = match &layer.onto {
        // Before anything else holds it.
        Some(onto) if onto.can_mut() && onto.is_contiguous() => onto.clone(),
        Some(onto) => own(onto.clone()),
        None => empty(&layer.x, [x.rows, weight.rows], layer.x.dtype),
    };
    Some(multiply(x, weight, bias, out, epilogue))
}

/// The gradient to `x [t, i]` from `weight [o, i]` and `dy [t, o]`.
pub(super) fn input_gradient<R: CubeRuntime>(
    weight: &CubeTensor<R>,
    dy: &CubeTensor<R>,
) -> Option<CubeTensor<R>> {
    fits(&[weight, dy]).then(|| plain(Factor::new(dy), Factor::transposed(weight)))
}

/// The gradient to `weight [o, i]` from `x [t, i]` and `dy [t, o]`.
pub(super) fn weight_gradient<R: CubeRuntime>(
    x: &CubeTensor<R>,
    dy: &CubeTensor<R>,
) -> Option<CubeTensor<R>> {
    fits(&[x, dy]).then(|| plain(Factor::transposed(dy), Factor::transposed(x)))
}

fn fits<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> bool {
    tensors
        .iter()
        .all(|x| computes_in_f32(x.dtype) && x.meta.num_elements() > 0)
}

fn plain<R: CubeRuntime>(a: Factor<R>, b: Factor<R>) -> CubeTensor<R> {
    let out = empty(&a.tensor, [a.rows, b.rows], a.tensor.dtype);
    multiply(a, b, None, out, Epilogue::NONE)
}

/// `a [m, k]` times the transpose of `b [n, k]` with an epilogue, to `out [m, n]`, which has no gaps. The two have one
/// dtype that kernels compute in, and no size is 0.
fn multiply<R: CubeRuntime>(
    a: Factor<R>,
    b: Factor<R>,
    bias: Option<CubeTensor<R>>,
    out: CubeTensor<R>,
    epilogue: Epilogue,
) -> CubeTensor<R> {
    let plan = Plan::new(&out.client, out.dtype, [a.rows, b.rows, a.depth]);
    // Vectors of the output, and of the bias.
    let n = if b.rows.is_multiple_of(4) { 4 } else { 1 };
    if plan.shares == 1 {
        launch(plan, a, b, bias, out.clone(), n, epilogue);
    } else {
        let shares = empty(&out, [plan.shares, a.rows, b.rows], DType::F32);
        launch(plan, a, b, None, shares.clone(), n, Epilogue::NONE);
        add_shares(shares, bias, out.clone(), n, epilogue);
    }
    out
}

/// The product, or its shares `[shares, m, n]`.
fn launch<R: CubeRuntime>(
    plan: Plan,
    a: Factor<R>,
    b: Factor<R>,
    bias: Option<CubeTensor<R>>,
    out: CubeTensor<R>,
    n: usize,
    epilogue: Epilogue,
) {
    let [x, y] = cubes(plan.tiles);
    let count = CubeCount::Static(x, y, plan.shares as u32);
    let width = address_type(&[&a.tensor, &b.tensor, &out]);
    let (client, dtype, to) = (out.client.clone(), a.tensor.dtype, out.dtype);
    let (a_order, b_order) = (a.order(), b.order());
    let (a_view, b_view) = (a.view(), b.view());
    let (a, b) = (a.tensor.into_array_arg(), b.tensor.into_array_arg());
    let bias = bias.map(|bias| bias.into_array_arg());
    let out = out.into_array_arg();
    // SAFETY, of both: factors are read inside their rows and depth, and the output is written inside its rows and
    // columns, each of its elements by one unit; cubes without a tile do nothing.
    match plan.kernel {
        Kernel::Registers { r } => unsafe {
            registers::multiply::launch_unchecked::<R>(
                &client,
                count,
                CubeDim::new_1d(registers::UNITS as u32),
                width,
                a_order.vector(),
                b_order.vector(),
                n,
                a,
                b,
                bias.into(),
                out,
                a_view,
                b_view,
                plan.cut,
                a_order,
                b_order,
                n,
                r,
                epilogue,
                dtype.into(),
                to.into(),
            );
        },
        Kernel::Fragments(layout) => unsafe {
            fragments::multiply::launch_unchecked::<R>(
                &client,
                count,
                CubeDim::new_1d(layout.units() as u32),
                width,
                a_order.vector(),
                b_order.vector(),
                n,
                a,
                b,
                bias.into(),
                out,
                a_view,
                b_view,
                plan.cut,
                a_order,
                b_order,
                n,
                layout,
                epilogue,
                dtype.into(),
                to.into(),
            );
        },
    }
}
