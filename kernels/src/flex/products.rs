//! Matrix products and sums of rows, which several ops consist of: by the `gemm` crate, which reads
//! transposed operands in place.

use rayon::prelude::*;

use super::math::vectorised;
use super::rows_per_task;

/// A matrix in a slice: its rows and columns are `row` and `column` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` elements, one after the other.
    pub(crate) fn rows(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            row: width,
            column: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }
}

/// `out [m, n] (rows `out_row` apart) = keep * out + left [m, k] right [k, n]`.
///
/// # Panics
/// If a matrix does not lie within its slice.
pub(crate) fn multiply(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    out_row: usize,
    keep: f32,
    left: Matrix,
    right: Matrix,
    parallel: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(end([m, n], out_row, 1) <= out.len() && n <= out_row);
    // SAFETY: `out` holds the output (asserted above) and is borrowed mutably, so apart from the
    // other two; its elements are all distinct, since n <= out_row.
    unsafe {
        gemm_into(
            [m, n, k],
            out.as_mut_ptr(),
            out_row,
            keep,
            left,
            right,
            parallel,
        )
    }
}

/// One past the last element of a matrix of this shape and these distances.
fn end([rows, columns]: [usize; 2], row: usize, column: usize) -> usize {
    (rows - 1) * row + (columns - 1) * column + 1
}

/// [`multiply`] into memory that, where `keep` is 0, need not be initialised.
///
/// # Safety
/// `out` is good for writing `m` rows of `n` elements, `out_row` apart, which overlap neither each
/// other nor the operands; and for reading them, where `keep` is not 0. No size is 0.
unsafe fn gemm_into(
    [m, n, k]: [usize; 3],
    out: *mut f32,
    out_row: usize,
    keep: f32,
    left: Matrix,
    right: Matrix,
    parallel: bool,
) {
    assert!(end([m, k], left.row, left.column) <= left.values.len());
    assert!(end([k, n], right.row, right.column) <= right.values.len());
    // Below some size, waking other cores costs more than it saves.
    let parallelism = if parallel && m * n * k > 1 << 21 {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the operands lie within their slices (asserted above); the caller answers for `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            keep != 0.0,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            keep,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `left [m, k] right [k, n]` in new memory, which is written once and not cleared before.
pub(crate) fn product([m, n, k]: [usize; 3], left: Matrix, right: Matrix) -> Vec<f32> {
    if m == 0 || n == 0 || k == 0 {
        return vec![0.0; m * n];
    }
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    // SAFETY: m * n elements are reserved, in rows of n; the product writes every one of them.
    unsafe {
        gemm_into([m, n, k], out.as_mut_ptr(), n, 0.0, left, right, true);
        out.set_len(m * n);
    }
    out
}

/// The sum of the rows of `x [.., width]`.
pub(crate) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(rows_per_task(width) * width)
        .map(|rows| {
            let mut sums = vec![0.0; width];
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(width) {
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum += value;
                        }
                    }
                },
            );
            sums
        })
        .collect();
    add_up(blocks, width)
}

/// The sum of the blocks' partial sums, in their order.
pub(crate) fn add_up(blocks: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for block in blocks {
        for (sum, value) in total.iter_mut().zip(block) {
            *sum += value;
        }
    }
    total
}
