//! Causal low-rank matrices, `C_i . B_j` for `j <= i`. Only the lower triangle of the product counts, so the truncated
//! singular value decomposition of the whole matrix is not the nearest such matrix: they are fitted by gradients.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;

use super::adam::{self, Normal};
use super::{Budget, Fitted, MatrixClass};

pub(super) struct LowRank;

/// Draws C and B `[m, l, n]`, such that the entries of the product have a variance of `1 / n`.
pub(super) fn draw_factors<B: Backend>(
    normal: &mut Normal,
    targets: &Tensor<B, 3>,
    n: usize,
) -> Vec<Tensor<B, 3>> {
    let [m, l, _] = targets.dims();
    let deviation = 1.0 / (n as f64).sqrt();
    let mut factor = || normal.tensor([m, l, n], [0.0, deviation], targets);
    vec![factor(), factor()]
}

impl MatrixClass for LowRank {
    const TITLE: &'static str = "causal low-rank";
    const METHOD: &'static str = "Adam";
    const BY_STEPS: bool = true;

    fn parameters(l: usize, n: usize) -> usize {
        2 * l * n
    }

    fn fit<B: TrainBackend>(
        targets: &Tensor<B::InnerBackend, 3>,
        states: &[usize],
        budget: &Budget,
    ) -> Option<Vec<Fitted<B::InnerBackend>>> {
        let [_, l, _] = targets.dims();
        let options = (&targets.device(), targets.dtype());
        let causal = Tensor::<B, 3>::ones([1, l, l], options).tril(0);
        let each = states.iter().map(|n| {
            let start = draw_factors(&mut Normal::new(budget.seed), targets, *n);
            let matrices = |factors: &[Tensor<B, 3>]| {
                let product = factors[0].clone().matmul(factors[1].clone().transpose());
                product * causal.clone()
            };
            adam::fit::<B>(targets, start, matrices, budget)
        });
        each.collect()
    }
}
