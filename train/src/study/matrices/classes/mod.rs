//! The classes of structured matrices, each with one method that approximates given causal matrices.
//!
//! A class is one file of this folder, whose type implements `MatrixClass`. The list at the end of this file makes
//! [`Class`] of them: a new class needs a file, its `mod` line, and one entry of that list. Letters in shapes: m
//! matrices, l tokens, n state.
//!
//! On a finite matrix the causal low-rank, state-space dual and general semiseparable classes with the same state have
//! the same infimum. With p the cumulative product of the decays, `C' = p C` and `B' = B / p` turn a state-space dual
//! matrix into a low-rank one; the products of a general matrix's transitions do the same if these are invertible; and
//! matrices with invertible transitions are dense in all three classes. So the classes differ here only in how near a
//! method comes to that infimum.

mod adam;
mod low_rank;
mod semiseparable;
mod ssd;
mod toeplitz;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;
use serde::{Deserialize, Serialize};

/// How long a fit by gradients takes, and how it begins.
pub struct Budget<'a> {
    /// Steps of Adam.
    pub steps: usize,
    /// Their rate.
    pub lr: f64,
    /// The seed of the random start.
    pub seed: u64,
    /// Asked before each step whether to stop.
    pub stop: &'a dyn Fn() -> bool,
}

/// The distances of a fit after some of its steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done; 0 for a closed form.
    pub step: usize,
    /// Time since the fit began.
    pub seconds: f64,
    /// The Frobenius norm of each matrix's difference from its approximation.
    pub distances: Vec<f64>,
}

/// Approximations by one class.
#[derive(Debug, Clone)]
pub struct Fitted<B: Backend> {
    /// The approximations, `[m, l, l]`.
    pub matrices: Tensor<B, 3>,
    /// The distances during the fit; the last point is the result.
    pub trace: Vec<Point>,
}

impl<B: Backend> Fitted<B> {
    /// The result of a closed form for `targets [m, l, l]`, which took this time.
    fn at_once(matrices: Tensor<B, 3>, targets: Tensor<B, 3>, seconds: f64) -> Self {
        let distances = distances(matrices.clone() - targets);
        Self {
            matrices,
            trace: vec![Point {
                step: 0,
                seconds,
                distances,
            }],
        }
    }

    /// Whether all distances during the fit are finite.
    pub fn is_finite(&self) -> bool {
        let all = self.trace.iter().flat_map(|point| &point.distances);
        all.copied().all(f64::is_finite)
    }
}

/// The Frobenius norm of each of `matrices [m, l, l]`.
pub fn distances<B: Backend>(matrices: Tensor<B, 3>) -> Vec<f64> {
    let [m, l, k] = matrices.dims();
    let squares = (matrices.clone() * matrices).reshape([m, l * k]).sum_dim(1);
    squares.sqrt().into_data().iter::<f64>().collect()
}

/// One class, and a method that finds approximations in it.
trait MatrixClass {
    /// The class in tables.
    const TITLE: &'static str;
    /// The method in tables.
    const METHOD: &'static str;
    /// Whether its matrices have a state.
    const HAS_STATE: bool = true;
    /// Whether the method takes steps from a random start.
    const BY_STEPS: bool;

    /// The number of parameters of a matrix of `l` tokens and state `n`.
    fn parameters(l: usize, n: usize) -> usize;

    /// Approximations of `targets [m, l, l]`, for each of `states`; `None` if asked to stop.
    fn fit<B: TrainBackend>(
        targets: &Tensor<B::InnerBackend, 3>,
        states: &[usize],
        budget: &Budget,
    ) -> Option<Vec<Fitted<B::InnerBackend>>>;
}

macro_rules! classes {
    ($($(#[$doc:meta])* $class:ident: $module:ident = $name:literal;)*) => {
        /// A class of structured matrices.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Class {
            $($(#[$doc])* $class,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$class),*];

            /// Its name in files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$class => $name,)*
                }
            }

            /// Its name in tables.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$class => $module::$class::TITLE,)*
                }
            }

            /// The method that finds approximations in it, in tables.
            pub fn method(self) -> &'static str {
                match self {
                    $(Self::$class => $module::$class::METHOD,)*
                }
            }

            /// Whether its matrices have a state.
            pub fn has_state(self) -> bool {
                match self {
                    $(Self::$class => $module::$class::HAS_STATE,)*
                }
            }

            /// Whether the method takes steps from a random start.
            pub fn is_by_steps(self) -> bool {
                match self {
                    $(Self::$class => $module::$class::BY_STEPS,)*
                }
            }

            /// The number of parameters of a matrix of `l` tokens and state `n`.
            pub fn parameters(self, l: usize, n: usize) -> usize {
                match self {
                    $(Self::$class => $module::$class::parameters(l, n),)*
                }
            }

            /// Approximations of `targets [m, l, l]`, for each of `states`; `None` if asked to stop.
            pub fn fit<B: TrainBackend>(
                self,
                targets: &Tensor<B::InnerBackend, 3>,
                states: &[usize],
                budget: &Budget,
            ) -> Option<Vec<Fitted<B::InnerBackend>>> {
                match self {
                    $(Self::$class => $module::$class::fit::<B>(targets, states, budget),)*
                }
            }
        }
    };
}

classes! {
    /// `T[i, j] = t[i - j]`.
    Toeplitz: toeplitz = "toeplitz";
    /// `T[i, j] = C_i . B_j`.
    LowRank: low_rank = "low_rank";
    /// `T[i, j] = C_i . B_j a_{j+1} ... a_i`.
    Ssd: ssd = "ssd";
    /// `T[i, j] = C_i A_i ... A_{j+1} B_j`.
    Semiseparable: semiseparable = "semiseparable";
}

impl Class {
    /// The largest state, at most `l`, with which a matrix of `l` tokens has at most this number of parameters.
    pub fn largest_state(self, l: usize, parameters: usize) -> Option<usize> {
        let fits = |n: &usize| self.parameters(l, *n) <= parameters;
        (1..=l).take_while(fits).last()
    }
}
