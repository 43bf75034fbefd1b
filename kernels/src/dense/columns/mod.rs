//! Splits the columns of one wide product into several tensors, as a mixer needs them from its input projection.
//!
//! Burn's `narrow` does the same, but its backward pass writes, for each part, a tensor of zeros as large as the whole,
//! and then adds these up. Here the gradients of the parts are joined once.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::profile::{Kind, timed};

/// The op, as backends compute it.
pub trait Columns: Backend {
    /// See [`split_columns`]: one part for each of `widths`.
    fn split_columns(x: Tensor<Self, 3>, widths: &[usize]) -> Vec<Tensor<Self, 3>> {
        reference::split(x, widths)
    }

    /// See [`extend_columns`].
    fn extend_columns(x: Tensor<Self, 3>, d: usize) -> Tensor<Self, 3> {
        let width = x.dims()[2];
        Self::join_columns(vec![Some(x)], &[width], d)
    }

    /// The gradient of [`Columns::split_columns`] to the whole of `d` columns from those of its parts; `None` for a part
    /// that has none. At least one has.
    fn join_columns(
        parts: Vec<Option<Tensor<Self, 3>>>,
        widths: &[usize],
        d: usize,
    ) -> Tensor<Self, 3> {
        reference::join(parts, widths, d)
    }
}

by_default!(Columns for ndarray, flex);

/// `x [b, l, width]` with zeros behind its columns: `[b, l, d]`. The gradient of x is a view of that of the whole where the
/// backend can have one. Differentiable in `x`.
///
/// # Panics
/// If `x` has more columns than `d`.
pub fn extend_columns<B: Columns>(x: Tensor<B, 3>, d: usize) -> Tensor<B, 3> {
    let width = x.dims()[2];
    assert!(width <= d, "extend_columns: {width} columns to {d}");
    timed(Kind::Elementwise, || B::extend_columns(x, d))
}

/// The columns of `x [b, l, d]` in parts of `widths`, one after the other: `[b, l, width]` each, which are views of
/// the memory of `x` where the backend can have them. Columns behind the last part are left out, and their gradient
/// is 0.
///
/// # Panics
/// If the widths add up to more than `d`.
pub fn split_columns<B: Columns, const N: usize>(
    x: Tensor<B, 3>,
    widths: [usize; N],
) -> [Tensor<B, 3>; N] {
    let [_, _, d] = x.dims();
    let sum: usize = widths.iter().sum();
    assert!(sum <= d, "split_columns: {sum} columns of {d}");
    let parts = timed(Kind::Elementwise, || B::split_columns(x, &widths));
    parts.try_into().expect("one part for each width")
}
