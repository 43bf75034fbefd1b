//! On the CubeCL backends: views of the same memory, and back in rows without padding, which Burn's own
//! concatenation has on CUDA.
//!
//! Burn's own slices are views from the device's alignment on, which CubeCL gives for CUDA as that of a reservation,
//! 512 bytes. Kernels there read vectors of 16 bytes and need no more.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::{Columns, reference};
use crate::cube::each_row::cubes;
use crate::cube::{address_type, empty, inner, is_cuda, tensor};

const UNITS: usize = 256;

/// The longest vector that a kernel reads, in bytes.
const VECTOR: usize = 16;

impl<R, F, I, T> Columns for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn split_columns(x: Tensor<Self, 3>, widths: &[usize]) -> Vec<Tensor<Self, 3>> {
        let whole = inner(x);
        match views(&whole, widths) {
            Some(views) => views.into_iter().map(tensor).collect(),
            None => reference::split(tensor(whole), widths),
        }
    }

    fn join_columns(
        parts: Vec<Option<Tensor<Self, 3>>>,
        widths: &[usize],
        d: usize,
    ) -> Tensor<Self, 3> {
        // What lies behind the last part needs no tensor of zeros.
        let parts = reference::all_columns(parts, widths, widths.iter().sum());
        tensor(join(parts.into_iter().map(inner).collect(), d))
    }
}

/// The parts, if each begins where a vector may.
fn views<R: CubeRuntime>(x: &CubeTensor<R>, widths: &[usize]) -> Option<Vec<CubeTensor<R>>> {
    let [b, l, d] = x.meta.shape().dims();
    let size = x.dtype.size();
    let strides = x.meta.strides();
    let rows_are_aligned = strides[..2]
        .iter()
        .all(|stride| (stride * size).is_multiple_of(VECTOR));
    if !is_cuda::<R>() || strides[2] != 1 || !rows_are_aligned {
        return None;
    }
    let mut start = 0;
    let part = |width: &usize| {
        let (first, behind) = (start * size, (d - start - width) * size);
        start += width;
        first.is_multiple_of(VECTOR).then(|| {
            let mut part = x.clone();
            part.handle = part
                .handle
                .offset_start(first as u64)
                .offset_end(behind as u64);
            part.meta.shape = Shape::from([b, l, *width]);
            part
        })
    };
    widths.iter().map(part).collect()
}

/// The compile-time parameters of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Plan {
    /// Vectors of a row of the whole.
    row: usize,
    /// Vectors of a row of each part.
    parts: Vec<usize>,
    /// Elements of a row of the last part, where they are no whole vectors.
    last: usize,
}

/// Parts side by side: a unit writes one vector of a row. Columns behind the last part are 0.
#[cube(launch_unchecked, address_type = "dynamic")]
fn join_kernel<F: Float, N: Size>(
    parts: &Sequence<Array<Vector<F, N>>>,
    last: &ComptimeOption<Array<F>>,
    whole: &mut Array<Vector<F, N>>,
    vectors: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at >= vectors {
        terminate!();
    }
    let (row, column) = (at / plan.row, at % plan.row);
    let mut value = Vector::<F, N>::new(F::new(0.0));
    #[unroll]
    for k in 0..comptime!(plan.parts.len()) {
        let start = comptime!(plan.parts[..k].iter().sum::<usize>());
        let width = comptime!(plan.parts[k]);
        if column >= start && column < start + width {
            value = parts.index(k)[row * width + column - start];
        }
    }
    #[comptime]
    match last {
        ComptimeOption::Some(last) => {
            let start = comptime!(plan.parts.iter().sum::<usize>());
            if column >= start {
                #[unroll]
                for lane in 0..N::value() {
                    let place = (column - start) * N::value() + lane;
                    if place < plan.last {
                        value[lane] = last[row * plan.last + place];
                    }
                }
            }
        }
        ComptimeOption::None => {}
    }
    whole[at] = value;
}

/// The parts `[b, l, width]` side by side in rows of `d` elements, the rest of which is 0.
fn join<R: CubeRuntime>(parts: Vec<CubeTensor<R>>, d: usize) -> CubeTensor<R> {
    let mut parts: Vec<_> = parts.into_iter().map(into_contiguous).collect();
    let width = |part: &CubeTensor<R>| part.meta.shape()[2];
    let [b, l, _]: [usize; 3] = parts[0].meta.shape().dims();
    let whole = empty(&parts[0], [b, l, d], parts[0].dtype);
    let (client, dtype) = (whole.client.clone(), whole.dtype);
    // The last part may have any width.
    let others = parts[..parts.len() - 1].iter().map(width);
    let sizes: Vec<_> = others.chain([d]).collect();
    let fits = |n: &usize| sizes.iter().all(|size| size.is_multiple_of(*n));
    let mut widths = client.io_optimized_vector_sizes(dtype.size());
    let n = widths.find(fits).unwrap_or(1);
    let last = (!width(&parts[parts.len() - 1]).is_multiple_of(n)).then(|| parts.pop());
    let last = last.flatten();
    let plan = Plan {
        row: d / n,
        parts: parts.iter().map(|part| width(part) / n).collect(),
        last: last.as_ref().map_or(0, width),
    };
    let vectors = b * l * plan.row;
    let [across, down] = cubes(vectors.div_ceil(UNITS));
    let address_type = address_type(&[&whole]);
    // SAFETY: units beyond the vectors of the whole leave, and the others read below the width of a part in a row that
    // it has, and write their own vector.
    unsafe {
        join_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type,
            n,
            parts.into_iter().map(CubeTensor::into_array_arg).collect(),
            last.map(CubeTensor::into_array_arg).into(),
            whole.clone().into_array_arg(),
            vectors,
            plan,
            dtype.into(),
        );
    }
    whole
}
