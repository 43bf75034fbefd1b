//! State-space dual matrices (Mamba-2), `C_i . B_j a_{j+1} ... a_i` for `j <= i`, with decays between 0 and 1: a fit by
//! gradients.

use burn::tensor::Tensor;
use kernels::{TrainBackend, TransferParts, transfer_matrix};

use super::adam::{self, Normal};
use super::low_rank::draw_factors;
use super::{Budget, Fitted, MatrixClass};

pub(super) struct Ssd;

/// The mean and the deviation of the drawn A_log, for decays `exp(-softplus(A_log))` of about 0.7.
const A_LOG: [f64; 2] = [-1.0, 1.0];

impl MatrixClass for Ssd {
    const TITLE: &'static str = "SSD";
    const METHOD: &'static str = "Adam";
    const BY_STEPS: bool = true;

    fn parameters(l: usize, n: usize) -> usize {
        2 * l * n + l
    }

    fn fit<B: TrainBackend>(
        targets: &Tensor<B::InnerBackend, 3>,
        states: &[usize],
        budget: &Budget,
    ) -> Option<Vec<Fitted<B::InnerBackend>>> {
        let [m, l, _] = targets.dims();
        let options = (&targets.device(), targets.dtype());
        let no_skip = Tensor::<B, 1>::zeros([1], options);
        let each = states.iter().map(|n| {
            let mut normal = Normal::new(budget.seed);
            let mut start = draw_factors(&mut normal, targets, *n);
            start.push(normal.tensor([m, l, 1], A_LOG, targets));
            let matrices = |parameters: &[Tensor<B, 3>]| {
                // One head a matrix.
                let parts = TransferParts {
                    c: parameters[0].clone().unsqueeze_dim(2),
                    b: parameters[1].clone().unsqueeze_dim(2),
                    a_log: parameters[2].clone(),
                    d: no_skip.clone(),
                };
                transfer_matrix(parts).reshape([m, l, l])
            };
            adam::fit::<B>(targets, start, matrices, budget)
        });
        each.collect()
    }
}
