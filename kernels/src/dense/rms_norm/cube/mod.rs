//! As CubeCL kernels, laid out as those of the [layer normalisation](crate::dense::layer_norm): one pass over memory
//! each way, a row in the registers of units side by side, and all sums in f32. The input alone is kept for the
//! backward pass.

mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use self::kernels::{backward_kernel, forward_kernel};
use super::{Gradients, RmsNorm, reference};
use crate::cube::column_sums::add_shares;
use crate::cube::each_row::with_rows;
use crate::cube::row_teams::{Plan, UNITS, row_stride};
use crate::cube::{
    address_type, computes_in_f32, empty, flat_vector_size, inner, tensor, vector_size,
};

/// Elements of a row that a unit holds forward, and backward, where it also adds up for gamma; more in rows too
/// long for the units of a cube.
const FORWARD: usize = 16;
const BACKWARD: usize = 8;
/// Rows that are added up to a share of the gradient of gamma, at least, and cubes that leave shares, at most:
/// shares are memory written and read.
const ROWS: usize = 16;
const CUBES: usize = 512;

impl<R, F, I, T> RmsNorm for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn rms_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if fits(&x, &gamma) {
            tensor(forward(inner(x), inner(gamma), epsilon))
        } else {
            reference::forward(x, gamma, epsilon)
        }
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 2],
    ) -> Gradients<Self> {
        if !fits(&x, &gamma) || dy.dtype() != x.dtype() {
            return reference::backward(x, gamma, dy, epsilon, wanted);
        }
        let [dx, dgamma] = backward(inner(x), inner(gamma), inner(dy), epsilon, wanted);
        (dx.map(tensor), dgamma.map(tensor))
    }
}

/// Whether the kernels support these inputs.
fn fits<B: Backend>(x: &Tensor<B, 2>, gamma: &Tensor<B, 1>) -> bool {
    computes_in_f32(x.dtype()) && computes_in_f32(gamma.dtype()) && x.shape().num_elements() > 0
}

/// The normalised `x [t, d]`, not empty.
fn forward<R: CubeRuntime>(x: CubeTensor<R>, gamma: CubeTensor<R>, epsilon: f64) -> CubeTensor<R> {
    let [t, d] = x.meta.shape().dims();
    let (x, gamma) = (with_rows(x), into_contiguous(gamma));
    let y = empty(&x, [t, d], x.dtype);
    let (n, m) = (vector_size(&[&x, &y]), flat_vector_size(&[&gamma]));
    let plan = Plan::new(d, [n, m, 1], FORWARD);
    let x_stride = row_stride(&x, n);
    let (client, cube) = (x.client.clone(), CubeDim::new_1d(UNITS as u32));
    let (dtype, parameters) = (x.dtype, gamma.dtype);
    // SAFETY: rows are read below `t` and columns below `d`, and a unit writes its own, where there is a row.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, t * plan.lanes, cube),
            cube,
            address_type(&[&x, &y]),
            n,
            plan.m,
            x.into_array_arg(),
            gamma.into_array_arg(),
            y.clone().into_array_arg(),
            t as u32,
            x_stride,
            epsilon as f32,
            plan,
            dtype.into(),
            parameters.into(),
        );
    }
    y
}

/// The gradients that are wanted, to `x [t, d]`, which is not empty, and `gamma`; `dy` of the dtype of `x`.
fn backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    gamma: CubeTensor<R>,
    dy: CubeTensor<R>,
    epsilon: f64,
    wanted: [bool; 2],
) -> [Option<CubeTensor<R>>; 2] {
    if wanted == [false; 2] {
        return [None, None];
    }
    let [t, d] = x.meta.shape().dims();
    let (x, gamma, dy) = (with_rows(x), into_contiguous(gamma), with_rows(dy));
    let (dtype, parameters) = (x.dtype, gamma.dtype);
    let dx = wanted[0].then(|| empty(&x, [t, d], dtype));
    let mut in_memory = vec![&x, &dy];
    in_memory.extend(&dx);
    let n = vector_size(&in_memory);
    let plan = |p: usize| Plan::new(d, [n, flat_vector_size(&[&gamma]), p], BACKWARD);
    let teams = plan(1).teams();
    // Without shares, rows need not be walked over by few.
    let rows = if wanted[1] {
        t.div_ceil(CUBES * teams).max(ROWS)
    } else {
        1
    };
    let cubes = t.div_ceil(rows * teams);
    let shares = wanted[1].then(|| empty(&x, [cubes * teams, 1, d], DType::F32));
    let plan = plan(shares.as_ref().map_or(1, |shares| vector_size(&[shares])));
    let (client, cube) = (x.client.clone(), CubeDim::new_1d(UNITS as u32));
    let count = if wanted[1] {
        // One for each share.
        CubeCount::Static(cubes as u32, 1, 1)
    } else {
        calculate_cube_count_elemwise(&client, cubes * UNITS, cube)
    };
    let mut in_memory = vec![&x, &dy];
    in_memory.extend(&shares);
    let width = address_type(&in_memory);
    let arg = |x: &CubeTensor<R>| x.clone().into_array_arg();
    let strides = [&x, &dy].map(|x| row_stride(x, n));
    // SAFETY: as forward; and no two rows of units write the same share.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            count,
            cube,
            width,
            n,
            plan.m,
            plan.p,
            arg(&x),
            gamma.into_array_arg(),
            arg(&dy),
            dx.as_ref().map(arg).into(),
            shares.as_ref().map(arg).into(),
            t as u32,
            strides[0],
            strides[1],
            rows as u32,
            epsilon as f32,
            plan,
            wanted,
            dtype.into(),
            parameters.into(),
        );
    }
    let dgamma = shares.map(|shares| add_shares(shares, parameters).swap_remove(0));
    [dx, dgamma]
}
