//! General semiseparable matrices, `C_i A_i ... A_{j+1} B_j` for `j <= i`, with any transitions. The approximation is
//! the realisation of the whole matrix that is balanced at every token, truncated to the strongest states (the paper's
//! method; Dewilde and van der Veen, Time-Varying Systems and Computations, 1998). It is near the best matrix of the
//! class, but is not the best.
//!
//! The block `H_k = A[k.., ..=k]` maps the tokens up to k to what the tokens from k on read of them. Let `U S V^T` be
//! its singular value decomposition. With the strongest n singular values, `C_k` is the first row of `U sqrt(S)`; `B_k`
//! is the token's own contribution to the state, `U^T A[k.., k] / sqrt(S)`; and the transition to k maps the state of
//! the token before to the state that gives the same outputs from k on. Everything is computed in f64 on the host,
//! matrices in parallel; the time grows with the fourth power of the length.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use rayon::prelude::*;

use super::{Budget, Fitted, MatrixClass};
use crate::study::matrices::singular::Columns;

pub(super) struct Semiseparable;

impl MatrixClass for Semiseparable {
    const TITLE: &'static str = "general semiseparable";
    const METHOD: &'static str = "balanced truncation";
    const BY_STEPS: bool = false;

    fn parameters(l: usize, n: usize) -> usize {
        l * (n * n + 2 * n)
    }

    fn fit<B: TrainBackend>(
        targets: &Tensor<B::InnerBackend, 3>,
        states: &[usize],
        _budget: &Budget,
    ) -> Option<Vec<Fitted<B::InnerBackend>>> {
        let started = Instant::now();
        let [m, l, _] = targets.dims();
        let values: Vec<f64> = targets.to_data().iter::<f64>().collect();
        let each = values.par_chunks(l * l);
        // For each matrix, its approximation by each state.
        let truncated: Vec<Vec<Vec<f32>>> =
            each.map(|matrix| truncate(matrix, l, states)).collect();
        let seconds = started.elapsed().as_secs_f64();
        let options = (&targets.device(), targets.dtype());
        let fitted = (0..states.len()).map(|state| {
            let of_state = truncated.iter().flat_map(|matrix| &matrix[state]);
            let data = TensorData::new(of_state.copied().collect::<Vec<f32>>(), [m, l, l]);
            Fitted::at_once(Tensor::from_data(data, options), targets.clone(), seconds)
        });
        Some(fitted.collect())
    }
}

/// A truncated realisation at one token: `n` states.
struct Token {
    /// `U sqrt(S)`: column i is what the tokens from this one on read of state i.
    reads: Vec<Vec<f64>>,
    /// `[n]`: what this token adds to each state.
    b: Vec<f64>,
    /// `[n, n of the token before]`.
    a: Vec<Vec<f64>>,
}

/// The approximations of the causal `matrix [l, l]` with each of `states`.
fn truncate(matrix: &[f64], l: usize, states: &[usize]) -> Vec<Vec<f32>> {
    let mut tokens: Vec<Vec<Token>> = states.iter().map(|_| vec![]).collect();
    // Orthogonal columns with the norms S: `U S` of each block.
    let mut block = Columns::default();
    for k in 0..l {
        block.drop_first_row();
        let own: Vec<f64> = (k..l).map(|i| matrix[i * l + k]).collect();
        block.push(own.clone());
        block.orthogonalise();
        for (n, tokens) in states.iter().zip(&mut tokens) {
            let next = token(&block, *n, &own, tokens.last());
            tokens.push(next);
        }
    }
    tokens.iter().map(|tokens| product(tokens, l)).collect()
}

/// The realisation at a token with block `U S`, whose own column of the matrix is `own`, behind the token `before`.
fn token(block: &Columns, n: usize, own: &[f64], before: Option<&Token>) -> Token {
    let mut token = Token {
        reads: vec![],
        b: vec![],
        a: vec![],
    };
    for (column, norm) in block.strongest(n) {
        // `u / sqrt(s)` and `u sqrt(s)`, with `column = u s`.
        let scale = norm.sqrt();
        let inverse: Vec<f64> = column.iter().map(|x| x / (norm * scale)).collect();
        let dot = |other: &[f64]| inverse.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
        token.b.push(dot(own));
        let earlier = before.iter().flat_map(|before| &before.reads);
        token
            .a
            .push(earlier.map(|reads| dot(&reads[1..])).collect());
        let reads = column.iter().map(|x| x / scale).collect();
        token.reads.push(reads);
    }
    token
}

/// The matrix `[l, l]` that a realisation makes.
fn product(tokens: &[Token], l: usize) -> Vec<f32> {
    let mut matrix = vec![0.0f32; l * l];
    // For each state, what each token so far has contributed to it.
    let mut left: Vec<Vec<f64>> = vec![];
    for (i, token) in tokens.iter().enumerate() {
        let moved = token.a.iter().zip(&token.b).map(|(a, b)| {
            let mut state = vec![0.0; i];
            for (a, left) in a.iter().zip(&left) {
                for (state, left) in state.iter_mut().zip(left) {
                    *state += a * left;
                }
            }
            state.push(*b);
            state
        });
        left = moved.collect();
        let row = &mut matrix[i * l..][..=i];
        for (reads, left) in token.reads.iter().zip(&left) {
            for (entry, left) in row.iter_mut().zip(left) {
                *entry += (reads[0] * left) as f32;
            }
        }
    }
    matrix
}
