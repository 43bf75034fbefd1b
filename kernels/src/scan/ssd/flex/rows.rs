//! Arithmetic on rows, beside the products of matrices.

use crate::flex::math::{dot, vectorised};
use crate::flex::products::Matrix;

/// `row[i] *= factors[i]` for each row of `width`.
pub(super) fn scale_rows(rows: &mut [f32], factors: &[f32], width: usize) {
    vectorised(
        #[inline(always)]
        || {
            for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
                for value in row {
                    *value *= factor;
                }
            }
        },
    );
}

/// `q` rows of a strided matrix, each times its factor, as contiguous rows of `width`.
pub(super) fn scaled_copy(from: Matrix, factors: &[f32], width: usize) -> Vec<f32> {
    let rows = factors.iter().enumerate();
    rows.flat_map(|(r, &f)| {
        from.values[r * from.row..][..width]
            .iter()
            .map(move |x| x * f)
    })
    .collect()
}

/// The dot product of each row of `left` (contiguous, `width` wide) with that of `right`.
pub(super) fn row_dots(left: &[f32], right: Matrix, width: usize) -> Vec<f32> {
    let rows = left.chunks_exact(width).enumerate();
    rows.map(|(r, left)| {
        let right = &right.values[r * right.row..][..width];
        vectorised(
            #[inline(always)]
            || dot(left, right),
        )
    })
    .collect()
}

pub(super) fn multiply_elements(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x *= y;
            }
        },
    );
}

pub(super) fn add_elements(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        },
    );
}
