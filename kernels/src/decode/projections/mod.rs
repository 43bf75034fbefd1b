//! The projections of decoding: weights times the few vectors of a decoding step, one for each sequence.
//!
//! A step reads every weight once and computes little with it, so its time is the time of the reads. An op must
//! therefore read at the full speed of the memory, and leave no pause between one weight and the next. So there are two
//! ops that take several weights at once, and include the operations around them in a block:
//!
//! - [`into`]: `act(W_i N(x) + bias_i)` for each of several weights, with `N` a layer normalisation or a
//!   root-mean-square one: the projections into a mixer and into an MLP;
//! - [`out_of`]: `x + sum of (W_i u_i + bias_i)`, the projections out of them and the residual stream. A `u` may be
//!   the product of two vectors, number by number.
//!
//! A gated MLP, `W_down (silu(W_gate N(x)) * W_up N(x))`, is one of each: the first op gives `silu` of the gate and the
//! other factor, the second multiplies them where it reads them.
//!
//! On a GPU, the memory of their outputs is used again by later steps, once nothing holds it, in the order in which the
//! calling thread queues its work. So pass the outputs to ops of the same thread, or read them, but do not pass them to
//! another thread. The output of [`head`], the last projection of a step, may be passed to any thread.
//!
//! Vectors and sums are f32 or wider, whatever the dtype of the weights: only the weights are so many that their size
//! matters. (On NVIDIA's tensor cores, 22 of the 24 significant bits of an f32 number are used, for vectors and for
//! weights in floats; for weights in 8 or 4 bits, each number of a vector is rounded to a 2^29th of the largest of the
//! 128 around it. On a CPU, vectors are rounded to 16 bits for products with such weights.)
//!
//! The result of a sequence does not depend, to the last bit, on how many other sequences are computed with it: on
//! backends with kernels for these ops, for up to 64 sequences; on a CPU, for weights in 8 or 4 bits; and for weights
//! in floats, on every CPU whose matrix product computes each row in the same way. The definition of the ops is
//! [`reference`](mod@reference).

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod quantise;
pub mod reference;
mod weight;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};

pub use weight::{Form, GROUP, Weight};

use crate::dense::layer_norm::LayerNorm;
use crate::dense::linear::Linear;
use crate::dense::rms_norm::RmsNorm;
use crate::dtype::narrow;
use crate::profile::{Kind, timed};

/// A weight and what belongs to it.
#[derive(Clone, Debug)]
pub struct Projection<B: Backend> {
    /// `[d_out, d_in]`.
    pub weight: Weight<B>,
    /// `[d_out]`.
    pub bias: Option<Tensor<B, 1>>,
}

/// What [`into`] does to a projection's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `gelu_new`, the tanh form.
    GeluNew,
    /// `v / (1 + e^-v)`.
    Silu,
}

/// A normalisation over the last dimension: a layer normalisation where there is a `beta`,
/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, and without it a root-mean-square one,
/// `x / sqrt(mean(x^2) + epsilon) * gamma` (arXiv 1910.07467).
#[derive(Clone, Debug)]
pub struct Normalisation<B: Backend> {
    /// `[d]`.
    pub gamma: Tensor<B, 1>,
    /// `[d]`.
    pub beta: Option<Tensor<B, 1>>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f64,
}

/// What [`out_of`] multiplies a weight with: a vector, or the product of two, number by number.
#[derive(Clone, Debug)]
pub struct Input<B: Backend> {
    /// `[b, d_in]`.
    pub u: Tensor<B, 2>,
    /// `[b, d_in]`: the other factor.
    pub gate: Option<Tensor<B, 2>>,
}

impl<B: Backend> From<Tensor<B, 2>> for Input<B> {
    fn from(u: Tensor<B, 2>) -> Self {
        Self { u, gate: None }
    }
}

impl<B: Backend> Input<B> {
    /// The vectors that the weight is multiplied with, `[b, d_in]`.
    pub(crate) fn product(self) -> Tensor<B, 2> {
        match self.gate {
            Some(gate) => gate * self.u,
            None => self.u,
        }
    }
}

/// The ops, as backends compute them. No gradient passes through them.
pub trait Projections: Linear + LayerNorm + RmsNorm {
    /// See [`into`].
    fn projections_into(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projections: Vec<(Projection<Self>, Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        reference::into(x, norm, projections)
    }

    /// See [`head`].
    fn projections_head(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projection: Projection<Self>,
    ) -> Tensor<Self, 2> {
        reference::head(x, norm, projection)
    }

    /// See [`out_of`].
    fn projections_out_of(
        x: Tensor<Self, 2>,
        inputs: Vec<(Input<Self>, Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        reference::out_of(x, inputs)
    }

    /// `W x + bias` of one projection, as the defaults of the ops above use it: `x [b, d_in]` to `[b, d_out]`.
    fn projection(x: Tensor<Self, 2>, projection: Projection<Self>) -> Tensor<Self, 2> {
        reference::linear(x, projection)
    }

    /// Whether a packed weight should be multiplied with many vectors by [`linear`]. If not, the caller converts the
    /// weight to floats, whose products can include bias, activation and residual in one pass.
    fn multiplies_packed() -> bool {
        false
    }

    /// Applies the activation that follows a projection in [`into`] to `y [b, d_out]`; used by the default of `into`.
    fn projection_activated(y: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        reference::activated(y, activation)
    }

    /// See [`Weight::to_float`]: the numbers of a weight in 8 bits, in `dtype`.
    fn int8_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        narrow(reference::int8_to_float(packed, scales), dtype)
    }

    /// See [`Weight::to_float`]: the numbers of a weight in 4 bits, in `dtype`.
    fn int4_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        narrow(reference::int4_to_float(packed, scales), dtype)
    }

    /// See [`rows`].
    fn projections_rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        reference::rows(table, ids)
    }
}

by_default!(Projections for ndarray, autodiff);

/// `act(W N(x) + bias)` of each projection: `x [b, d_in]` to `[b, d_out]` each, in the dtype of `x`.
///
/// # Panics
/// If there is no projection, or a shape does not fit.
pub fn into<B: Projections>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projections: Vec<(Projection<B>, Activation)>,
) -> Vec<Tensor<B, 2>> {
    let [_, d] = x.dims();
    assert!(
        !projections.is_empty(),
        "projections::into: there is no projection"
    );
    assert_eq!(
        norm.gamma.dims(),
        [d],
        "projections::into: gamma must have {d} elements"
    );
    if let Some(beta) = &norm.beta {
        assert_eq!(
            beta.dims(),
            [d],
            "projections::into: beta must have {d} elements"
        );
    }
    for (projection, _) in &projections {
        projection.check("projections::into", d);
    }
    B::projections_into(x, norm, projections)
}

/// `W N(x) + bias`: the same as [`into`] for one projection, but the memory of the output is not used again by later
/// steps.
///
/// # Panics
/// If a shape does not fit.
pub fn head<B: Projections>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projection: Projection<B>,
) -> Tensor<B, 2> {
    projection.check("projections::head", x.dims()[1]);
    B::projections_head(x, norm, projection)
}

/// `x + sum of (W u + bias)`: `x [b, d]`, each `u [b, d_in]`, or `u * gate`, with its projection to `d`; `[b, d]` in
/// the dtype of `x`, which is that of every `u` and gate.
///
/// # Panics
/// If there is no projection, or a shape does not fit.
pub fn out_of<B: Projections>(
    x: Tensor<B, 2>,
    inputs: Vec<(Input<B>, Projection<B>)>,
) -> Tensor<B, 2> {
    let [b, d] = x.dims();
    assert!(
        !inputs.is_empty(),
        "projections::out_of: there is no projection"
    );
    for (Input { u, gate }, projection) in &inputs {
        let [rows, d_in] = u.dims();
        if let Some(gate) = gate {
            assert_eq!(
                gate.dims(),
                [rows, d_in],
                "projections::out_of: both factors of an input must have one shape"
            );
        }
        assert_eq!(
            rows, b,
            "projections::out_of: every input must have {b} rows"
        );
        projection.check("projections::out_of", d_in);
        let d_out = projection.weight.dims()[0];
        assert_eq!(
            d_out, d,
            "projections::out_of: every weight must have {d} rows"
        );
    }
    B::projections_out_of(x, inputs)
}

/// `W x + bias` of any number of vectors: `x [.., d_in]` to `[.., d_out]`, in the dtype of `x`.
///
/// # Panics
/// If a shape does not fit.
pub fn linear<B: Projections, const D: usize>(
    x: Tensor<B, D>,
    projection: Projection<B>,
) -> Tensor<B, D> {
    let mut shape = x.dims();
    let d_in = shape[D - 1];
    projection.check("projections::linear", d_in);
    let vectors = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = projection.weight.dims()[0];
    let x = x.reshape([vectors, d_in]);
    let y = timed(Kind::Products, || B::projection(x, projection));
    y.reshape(shape)
}

/// The rows `ids [b]` of `table [v, d]`: `[b, d]`, in f32 for a table in half precision. A step begins with this op.
///
/// If an id is `v` or more, some backends panic, and others return meaningless numbers. On backends that have
/// [`sample`](crate::sample()), an id below 0, which says why there is no token, counts as 0.
pub fn rows<B: Projections>(table: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    B::projections_rows(table, ids)
}

impl<B: Backend> Projection<B> {
    fn check(&self, op: &str, d: usize) {
        let [d_out, d_in] = self.weight.dims();
        assert_eq!(
            d_in, d,
            "{op}: the input has {d} numbers, the weight takes {d_in}"
        );
        if let Some(bias) = &self.bias {
            assert_eq!(
                bias.dims(),
                [d_out],
                "{op}: the bias must have {d_out} elements"
            );
        }
    }
}
