//! Code for ops that use one cube for each row: the number of cubes, and the mean of the values that they computed.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::empty;
use super::reduce::{Fold, of_cube};

/// The number of cubes along one dimension that every device supports.
const ACROSS: usize = 65_535;

/// Units of the cube that takes a mean.
const UNITS: usize = 256;

/// A two-dimensional grid of at least `count` cubes; the surplus is less than one row of the grid. A kernel must return
/// at once in cubes whose `CUBE_POS` is `count` or more.
pub(crate) fn cubes(count: usize) -> [u32; 2] {
    let down = count.div_ceil(ACROSS).max(1);
    [count.div_ceil(down) as u32, down as u32]
}

/// `x` unchanged if elements along the last axis are adjacent in memory, and otherwise a contiguous copy.
pub(crate) fn with_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    match x.meta.strides().last() {
        Some(1) => x,
        _ => into_contiguous(x),
    }
}

#[cube(launch_unchecked)]
fn mean_kernel(values: &Array<f32>, mean: &mut Array<f32>, share: f32) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < values.len() {
        sum += values[i];
        i += UNITS;
    }
    let sum = of_cube(sum, &mut shared, Fold::Sum, UNITS);
    if UNIT_POS == 0 {
        mean[0] = sum * share;
    }
}

/// The sum of `values [n]` (f32, contiguous) divided by `count`, as one element. The order of the additions is fixed.
pub(crate) fn mean<R: CubeRuntime>(values: CubeTensor<R>, count: usize) -> CubeTensor<R> {
    let mean = empty(&values, [1], DType::F32);
    // SAFETY: units read below the length of `values`, and one of them writes the one element.
    unsafe {
        mean_kernel::launch_unchecked::<R>(
            &mean.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            values.into_array_arg(),
            mean.clone().into_array_arg(),
            1.0 / count as f32,
        );
    }
    mean
}
