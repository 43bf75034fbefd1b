//! Fits a mixer's output projection by a ridge regression whose penalty pulls towards the present projection, not
//! towards zero.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use rayon::prelude::*;

use super::calibrated::{device, host};
use super::own_stream::{Piece, Split};
use super::set;
use super::solve::{mean_of_diagonal, product, solve};
use crate::mixers::discrete_mamba2::DiscreteMamba2;
use crate::precision::widen;

/// The ridges that the output projection's is chosen from, as shares of the mean of the diagonal.
const RIDGES: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Sums of products over some text, of what the output projection reads and is to give; both are weighted.
struct Products {
    /// `[d_inner, d_inner]`.
    gram: Vec<f64>,
    /// `[d_inner, d_model]`.
    right: Vec<f64>,
}

impl Products {
    fn of<B: KernelBackend>(mamba: &DiscreteMamba2<B>, pieces: &[Piece<B>]) -> Self {
        let mut sums: Option<[Tensor<B, 2>; 2]> = None;
        for piece in pieces {
            let root = piece.weights.clone().sqrt();
            let columns = |x: Tensor<B, 3>| -> Tensor<B, 2> {
                let [b, l, d] = x.dims();
                (widen(x) * root.clone()).reshape([b * l, d]).transpose()
            };
            let y = columns(mamba.gated(piece.read.clone()));
            let wanted = columns(piece.wanted.clone());
            // The product of this project, which keeps all bits of f32 on every backend.
            let gram = kernels::linear(y.clone(), y.clone(), None);
            let right = kernels::linear(y, wanted, None);
            // On the device, so that the host waits once.
            sums = Some(match sums {
                Some([of_gram, of_right]) => [of_gram + gram, of_right + right],
                None => [gram, right],
            });
        }
        let [gram, right] = sums.expect("a piece of text").map(host);
        Self { gram, right }
    }

    /// Of `x [d_inner, d_model]`, what its outputs lack, less the squares of what is wanted.
    fn lacking(&self, x: &[f64], n: usize) -> f64 {
        let of_gram = product(&self.gram, x, n);
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        dot(x, &of_gram) - 2.0 * dot(x, &self.right)
    }
}

/// The mixer with its output projection fitted.
pub(super) fn with_projection<B: KernelBackend>(
    mamba: &DiscreteMamba2<B>,
    text: &Split<Piece<B>>,
) -> DiscreteMamba2<B> {
    let [d, n] = mamba.out_proj.weight.dims();
    let fitted = Products::of(mamba, text.fitted());
    let held_out = (text.held_out > 0).then(|| Products::of(mamba, text.measured()));
    let copied: Vec<f64> = host(mamba.out_proj.weight.val().transpose());
    let of_copy = product(&fitted.gram, &copied, n);
    let right = fitted.right.iter().zip(of_copy);
    let right: Vec<f64> = right.map(|(right, of_copy)| right - of_copy).collect();
    let mean = mean_of_diagonal(&fitted.gram, n);
    // Without held-out text, the smallest ridge would always seem the best.
    let ridges = match held_out {
        Some(_) => &RIDGES[..],
        None => &RIDGES[3..4],
    };
    let tried = ridges.par_iter().map(|ridge| {
        let change = solve(&fitted.gram, &right, n, ridge * mean);
        let both = copied.iter().zip(change);
        let x: Vec<f64> = both.map(|(copied, change)| copied + change).collect();
        (held_out.as_ref().unwrap_or(&fitted).lacking(&x, n), x)
    });
    let tried: Vec<(f64, Vec<f64>)> = tried.collect();
    let mut best = (f64::INFINITY, copied);
    for (lacking, x) in tried {
        if lacking < best.0 {
            best = (lacking, x);
        }
    }
    let mut mamba = mamba.clone();
    let weight = device::<B, 2>(&best.1, [n, d], &mamba.d.val()).transpose();
    set(&mut mamba.out_proj.weight, weight);
    mamba
}
