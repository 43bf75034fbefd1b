//! On slices, by the `gemm` crate: transposed operands are read in place, and the bias is where the
//! product is accumulated onto.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Gradients;
use crate::flex::math::vectorised;
use crate::flex::{Values, rows_per_task, tensor};

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
    let end = |rows: usize, row: usize, columns: usize, column: usize| {
        (rows - 1) * row + (columns - 1) * column
    };
    assert!(end(m, out_row, n, 1) < out.len() && n <= out_row);
    assert!(end(m, left.row, k, left.column) < left.values.len());
    assert!(end(k, right.row, n, right.column) < right.values.len());
    // Below some size, waking other cores costs more than it saves.
    let parallelism = match parallel && m * n * k > 1 << 21 {
        true => gemm::Parallelism::Rayon(0),
        false => gemm::Parallelism::None,
    };
    // SAFETY: the three matrices lie within their slices (asserted above), `out` is borrowed
    // mutably and thus apart from the other two, and its elements are all distinct (n <= out_row).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
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

pub(crate) fn forward(
    x: Tensor<Flex, 2>,
    weight: Tensor<Flex, 2>,
    bias: Option<Tensor<Flex, 1>>,
) -> Tensor<Flex, 2> {
    let [t, i] = x.dims();
    let [o, _] = weight.dims();
    let (x, weight) = (Values::of(x), Values::of(weight));
    let (mut y, keep) = match bias {
        Some(bias) => (Values::of(bias).repeat(t), 1.0),
        None => (vec![0.0; t * o], 0.0),
    };
    let weight_io = Matrix::rows(&weight, i).transposed();
    multiply(
        [t, o, i],
        &mut y,
        o,
        keep,
        Matrix::rows(&x, i),
        weight_io,
        true,
    );
    tensor(y, [t, o])
}

pub(crate) fn backward(
    x: Tensor<Flex, 2>,
    weight: Tensor<Flex, 2>,
    dy: Tensor<Flex, 2>,
    wanted: [bool; 3],
) -> Gradients<Flex> {
    let [t, i] = x.dims();
    let [o, _] = weight.dims();
    let (x, weight, dy) = (Values::of(x), Values::of(weight), Values::of(dy));
    let dy_to = Matrix::rows(&dy, o);
    let dx = wanted[0].then(|| {
        let mut dx = vec![0.0; t * i];
        multiply(
            [t, i, o],
            &mut dx,
            i,
            0.0,
            dy_to,
            Matrix::rows(&weight, i),
            true,
        );
        tensor(dx, [t, i])
    });
    let dweight = wanted[1].then(|| {
        let mut dweight = vec![0.0; o * i];
        multiply(
            [o, i, t],
            &mut dweight,
            i,
            0.0,
            dy_to.transposed(),
            Matrix::rows(&x, i),
            true,
        );
        tensor(dweight, [o, i])
    });
    let dbias = wanted[2].then(|| tensor(column_sums(&dy, o), [o]));
    (dx, dweight, dbias)
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
