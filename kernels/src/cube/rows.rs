//! The rows of one head in a tensor `[b, l, heads or groups, width]` with any strides.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The strides of `[b, l, heads or groups, width]`, and two of its sizes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct View {
    pub batch: usize,
    pub row: usize,
    pub group: usize,
    pub column: usize,
    pub count: usize,
    pub groups: usize,
}

/// The view of `x`, which may lack the last axis.
pub(crate) fn view<R: CubeRuntime>(x: &CubeTensor<R>) -> ViewLaunch<R> {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let column = strides.get(3).copied().unwrap_or(1);
    ViewLaunch::new(
        strides[0], strides[1], strides[2], column, shape[1], shape[2],
    )
}

/// Where a head's rows are in an array.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Rows {
    /// Of the first row.
    pub base: usize,
    /// From one row to the next.
    pub step: usize,
    /// From one column to the next.
    pub column: usize,
    pub count: usize,
}

#[cube]
pub(crate) fn rows_of(view: &View, batch: usize, head: usize, h: usize) -> Rows {
    let group = head / (h / view.groups);
    Rows {
        base: batch * view.batch + group * view.group,
        step: view.row,
        column: view.column,
        count: view.count,
    }
}
