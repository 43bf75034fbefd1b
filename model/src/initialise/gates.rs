//! The gate of each head, by regression on what the layer reads.
//!
//! Softmax divides by a sum that differs from token to token: if the query of a head matches no key, the head attends
//! to the first token, whose value is close to zero, and so its output is close to zero. A scan has no such sum, but
//! the mixer has a gate. If a head's output is `y` and its target is `c`, the best gate `g` for a token minimises
//! `|c - g y|^2`. Over the text this is a weighted regression of `g - 1` on the layer's input. At the open gate, both
//! the value and the slope of the gate's activation are 1, so the outputs of the regression are added to the open
//! gate's bias.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use rayon::prelude::*;

use super::calibrated::host;
use super::solve::{mean_of_diagonal, solve};
use crate::mixers::discrete_mamba2::DiscreteMamba2;
use crate::precision::widen;

/// Added to the diagonal of the regression, as a share of its mean.
const RIDGE: f64 = 1e-2;

/// Some tokens that gates are fitted to.
pub(super) struct Tokens<B: KernelBackend> {
    /// What the mixer reads, `[b, l, d_model]`.
    pub read: Tensor<B, 3>,
    /// What it is to give before its output projection, `[b, l, h, p]`.
    pub wanted: Tensor<B, 4>,
    /// How much each token counts, `[b, l, 1]`.
    pub weights: Tensor<B, 3>,
}

/// Sums over the text of one head.
struct Sums {
    /// `[d_model + 1, d_model + 1]`, the last row and column being those of the bias.
    gram: Vec<f64>,
    /// `[d_model + 1]`.
    right: Vec<f64>,
}

/// The mixer, whose gates are open, with gates that depend on what it reads; `None` where it gives nothing.
pub(super) fn with_gates<B: KernelBackend>(
    mamba: &DiscreteMamba2<B>,
    text: impl Iterator<Item = Tokens<B>>,
) -> Option<DiscreteMamba2<B>> {
    let h = mamba.config().n_v_heads;
    // Of each head the sum of products, and of all heads the right sides, `[h, d + 1]`.
    let mut grams: Vec<Tensor<B, 2>> = vec![];
    let mut rights: Option<Tensor<B, 2>> = None;
    for Tokens {
        read,
        wanted,
        weights,
    } in text
    {
        let [b, l, d] = read.dims();
        let y = widen(mamba.ungated(read.clone()));
        // The squares of y, and its products with what is lacking.
        let of_heads = |x: Tensor<B, 4>| -> Tensor<B, 2> {
            let weighted = x.sum_dim(3).reshape([b, l, h]) * widen(weights.clone());
            weighted.reshape([b * l, h]).transpose()
        };
        let squares = of_heads(y.clone() * y.clone());
        let lacking = of_heads(y.clone() * (widen(wanted) - y));
        let read: Tensor<B, 2> = widen(read).reshape([b * l, d]);
        let ones = read.clone().narrow(1, 0, 1).ones_like();
        let columns = Tensor::cat(vec![read, ones], 1).transpose();
        let right = kernels::linear(lacking, columns.clone(), None);
        // On the device, so that the host waits once.
        rights = Some(match rights {
            Some(sum) => sum + right,
            None => right,
        });
        for head in 0..h {
            let weighted = columns.clone() * squares.clone().narrow(0, head, 1);
            // The product of this project, which keeps all bits of f32 on every backend.
            let gram = kernels::linear(weighted, columns.clone(), None);
            match grams.get_mut(head) {
                Some(sum) => *sum = sum.clone() + gram,
                None => grams.push(gram),
            }
        }
    }
    let right = host(rights?);
    let n = right.len() / h;
    let sums = grams.into_iter().enumerate().map(|(head, gram)| Sums {
        gram: host(gram),
        right: right[head * n..][..n].to_vec(),
    });
    let sums: Vec<Sums> = sums.collect();
    let solved = |sums: &Sums| {
        let mean = mean_of_diagonal(&sums.gram, n);
        // A head that gives nothing has no gate that is better than another.
        (mean > 0.0).then(|| solve(&sums.gram, &sums.right, n, RIDGE * mean))
    };
    let gates: Vec<Option<Vec<f64>>> = sums.par_iter().map(solved).collect();
    if gates.iter().all(Option::is_none) {
        return None;
    }
    let gates = gates
        .into_iter()
        .map(|gate| gate.unwrap_or_else(|| vec![0.0; n]));
    let mut mamba = mamba.clone();
    mamba.add_to_gates(&gates.collect::<Vec<_>>());
    Some(mamba)
}

#[cfg(test)]
mod tests {
    use burn::tensor::backend::Backend;
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;

    use super::{Tokens, with_gates};
    use crate::mixers::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config};

    /// Gates that are nearly the ones wanted are found, with the gate's bias in either place.
    #[test]
    fn gates_are_found() {
        type B = Flex;
        let device = Default::default();
        B::seed(&device, 1);
        for bias in [false, true] {
            let options = DiscreteMamba2Config {
                d_state: 8,
                chunk_size: 8,
                bias,
                z_bias: !bias,
                ..DiscreteMamba2Config::with_heads(2)
            };
            let mamba = DiscreteMamba2::<B>::new(&options, 16, 1, &device).expect("fits");
            let normal = |shape: [usize; 3], deviation: f64| {
                Tensor::<B, 3>::random(shape, Distribution::Normal(0.0, deviation), &device)
            };
            let read = normal([8, 16, 16], 1.0);
            // Of each head another direction.
            let directions = normal([1, 16, 2], 0.05);
            let directions = directions.repeat_dim(0, 8);
            let gate = read.clone().matmul(directions).add_scalar(1.0);
            let y = mamba.ungated(read.clone());
            let wanted = y.clone() * gate.reshape([8, 16, 2, 1]);
            let tokens = Tokens {
                read: read.clone(),
                wanted: wanted.clone(),
                weights: Tensor::ones([8, 16, 1], &device),
            };
            let gated = with_gates(&mamba, [tokens].into_iter()).expect("gates");
            let squares = |x: Tensor<B, 4>| x.powi_scalar(2).sum().into_scalar();
            let given = gated.gated(read).reshape([8, 16, 2, 8]);
            let (before, after) = (squares(y - wanted.clone()), squares(given - wanted));
            assert!(after < 0.1 * before, "bias {bias}: {after} of {before}");
        }
    }
}
