//! Toeplitz matrices. The nearest one, in least squares, has the mean of each diagonal.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use model::toeplitz_matrix;

use super::{Budget, Fitted, MatrixClass};

pub(super) struct Toeplitz;

impl MatrixClass for Toeplitz {
    const TITLE: &'static str = "Toeplitz";
    const METHOD: &'static str = "diagonal means (exact)";
    const HAS_STATE: bool = false;
    const BY_STEPS: bool = false;

    fn parameters(l: usize, _n: usize) -> usize {
        l
    }

    fn fit<B: TrainBackend>(
        targets: &Tensor<B::InnerBackend, 3>,
        states: &[usize],
        _budget: &Budget,
    ) -> Option<Vec<Fitted<B::InnerBackend>>> {
        let started = Instant::now();
        let [_, l, _] = targets.dims();
        let nearest = toeplitz_matrix(diagonal_means(targets.clone()), l, l);
        let fitted = Fitted::at_once(nearest, targets.clone(), 0.0);
        let seconds = started.elapsed().as_secs_f64();
        let each = states.iter().map(|_| {
            let mut fitted = fitted.clone();
            fitted.trace[0].seconds = seconds;
            fitted
        });
        Some(each.collect())
    }
}

/// The means of the diagonals of `matrices [m, l, l]`, from the main one down: `[m, l]`.
fn diagonal_means<B: Backend>(matrices: Tensor<B, 3>) -> Tensor<B, 2> {
    let [m, l, _] = matrices.dims();
    let device = matrices.device();
    let like = (&device, matrices.dtype());
    // Rows of `2 l - 1` numbers are read as rows of `2 l`: each row is then shifted by one, and diagonals become
    // columns.
    let wide = Tensor::cat(vec![matrices, Tensor::zeros([m, l, l], like)], 2);
    let wide = wide.narrow(2, 0, 2 * l - 1).reshape([m, l * (2 * l - 1)]);
    let skewed = Tensor::cat(vec![wide, Tensor::zeros([m, l], like)], 1);
    let sums = skewed.reshape([m, l, 2 * l]).sum_dim(1).reshape([m, 2 * l]);
    // Column 0 is the main diagonal; the last column is the one below it.
    let mut columns = vec![sums.clone().narrow(1, 0, 1)];
    if l > 1 {
        columns.push(sums.narrow(1, l + 1, l - 1).flip([1]));
    }
    let lengths: Vec<f32> = (1..=l).rev().map(|length| length as f32).collect();
    let lengths = Tensor::<B, 2>::from_data(TensorData::new(lengths, [1, l]), like);
    Tensor::cat(columns, 1) / lengths
}
