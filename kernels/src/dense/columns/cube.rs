//! On the CubeCL backends: views of the same memory, and back in rows without padding, which Burn's own
//! concatenation has on CUDA.
//!
//! Burn's own slices are views from the device's alignment on, which CubeCL gives for CUDA as that of a reservation,
//! 512 bytes. Kernels there read vectors of 16 bytes and need no more.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::{Columns, reference};
use crate::cube::{empty, inner, is_cuda, tensor};

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
        let parts = reference::all_columns(parts, widths, d);
        let first = inner(parts[0].clone());
        let [b, l, _] = first.meta.shape().dims();
        let whole = tensor(empty(&first, [b, l, d], first.dtype));
        let mut start = 0;
        parts.into_iter().fold(whole, |whole, part| {
            let end = start + part.dims()[2];
            let columns = [0..b, 0..l, start..end];
            start = end;
            whole.slice_assign(columns, part)
        })
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
