//! The state-space-dual scan of Mamba-2, in its discrete form: one decay per token and head.
//!
//! For every batch and head, with `a_t = exp(-softplus(a_log_t))`:
//!
//! ```text
//! h_t = a_t h_(t-1) + x_t B_t^T        the state, p x n
//! y_t = h_t C_t
//! ```
//!
//! It is computed in chunks of `Q` tokens (arXiv 2405.21060, section 6; the comments use its step numbers), so that the
//! work is linear in the length and consists almost only of matrix products:
//! 1. inside a chunk, `y = (L o C B^T) x`, with `L[l, s]` the product of the decays in `(s, l]`;
//! 2. what a chunk adds to the state by its end;
//! 3. the recurrence over chunks, which gives the state that enters each;
//! 4. what that entering state gives each output of its chunk.
//!
//! The published code passes the decay through a step size `dt`, and divides `x` by `softplus(a_log)` to cancel it
//! again. This fails if the softplus is near zero. Here the decay is used directly, without a step size.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod gated;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use gated::{Epilogue, GatedScan, GatedScanGradients, gated_scan};

use super::skip_gate::SkipGate;
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

/// What is scanned.
#[derive(Debug, Clone)]
pub struct ScanInputs<B: Backend> {
    /// `[b, l, h, p]`.
    pub x: Tensor<B, 4>,
    /// `[b, l, h]`.
    pub a_log: Tensor<B, 3>,
    /// `[b, l, g, n]`, with `g` dividing `h`.
    pub b: Tensor<B, 4>,
    /// `[b, l, g, n]`.
    pub c: Tensor<B, 4>,
    /// `[b, h, p, n]`; zeros where absent.
    pub initial_state: Option<Tensor<B, 4>>,
}

/// Gradients of the scan's `y`, each in its input's shape.
#[derive(Debug, Clone)]
pub struct SsdGradients<B: Backend> {
    /// To `x`, `[b, l, h, p]`.
    pub x: Tensor<B, 4>,
    /// To `a_log`, `[b, l, h]`.
    pub a_log: Tensor<B, 3>,
    /// To `B`, `[b, l, g, n]`.
    pub b: Tensor<B, 4>,
    /// To `C`, `[b, l, g, n]`.
    pub c: Tensor<B, 4>,
    /// To the initial state, `[b, h, p, n]`, whether or not one was given.
    pub initial_state: Tensor<B, 4>,
}

/// The op, as backends compute it: alone, and with its epilogue.
pub trait SsdScan: SkipGate {
    /// See [`ssd_scan`].
    fn ssd_scan_forward(
        scan: ScanInputs<Self>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        reference::forward(scan, chunk)
    }

    /// Gradients of the scan's `y` to every input, from `dy [b, l, h, p]`.
    fn ssd_scan_backward(
        scan: ScanInputs<Self>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        reference::backward(scan, dy, chunk)
    }

    /// See [`gated_scan`]. `keep` says whether a backward pass will follow.
    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        chunk: usize,
        _keep: bool,
    ) -> GatedScan<Self> {
        gated::forward(scan, epilogue, chunk)
    }

    /// Gradients of [`SsdScan::gated_scan_forward`] to its inputs, from that of `out` and what the forward pass
    /// [kept](GatedScan::kept).
    fn gated_scan_backward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        kept: Option<Tensor<Self, 4>>,
        dout: Tensor<Self, 4>,
        chunk: usize,
    ) -> GatedScanGradients<Self> {
        let y = kept.expect("the forward pass of this backend returns y");
        gated::backward(scan, epilogue, y, dout, chunk)
    }
}

by_default!(SsdScan for ndarray);

/// The scan: `x [b, l, h, p]`, `a_log [b, l, h]`, `b` and `c` `[b, l, g, n]` with `g` dividing `h`
/// (head `i` uses group `i / (h / g)`), `initial_state [b, h, p, n]` (zeros where absent), to
/// `y [b, l, h, p]` and the state after the last token, `[b, h, p, n]`.
///
/// Any length, divisible by `chunk` or not. Half-precision inputs are widened to f32 inside; the state is then f32.
/// Results are finite for `a_log` from -40 to 40 and beyond. `y` is differentiable in every input; **the final state is
/// returned detached**, because an op of Burn 0.21 has only one differentiable output. To train through a state, run
/// the scan over the whole length.
///
/// # Panics
/// If the shapes do not fit together as above, `l` is 0, `chunk` is 0, or some inputs are f64 and others not.
pub fn ssd_scan<B: SsdScan>(
    x: Tensor<B, 4>,
    a_log: Tensor<B, 3>,
    b: Tensor<B, 4>,
    c: Tensor<B, 4>,
    initial_state: Option<Tensor<B, 4>>,
    chunk: usize,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let scan = ScanInputs {
        x,
        a_log,
        b,
        c,
        initial_state,
    };
    check(&scan, chunk);
    let chunk = chunk.min(scan.x.dims()[1]);
    timed(Kind::Scan, || B::ssd_scan_forward(scan, chunk))
}

/// Asserts that the shapes fit together.
fn check<B: Backend>(scan: &ScanInputs<B>, chunk: usize) {
    let ScanInputs { x, a_log, b, c, .. } = scan;
    let [batch, l, h, p] = x.dims();
    let [_, _, g, n] = b.dims();
    let mut dtypes = vec![x.dtype(), a_log.dtype(), b.dtype(), c.dtype()];
    dtypes.extend(scan.initial_state.as_ref().map(Tensor::dtype));
    assert_one_width("ssd_scan", &dtypes);
    assert!(l > 0, "ssd_scan: the length must not be 0");
    assert!(chunk > 0, "ssd_scan: the chunk must not be 0");
    assert_eq!(
        a_log.dims(),
        [batch, l, h],
        "ssd_scan: a_log must be [b, l, h]"
    );
    assert_eq!(
        b.dims(),
        [batch, l, g, n],
        "ssd_scan: B must be [b, l, g, n]"
    );
    assert_eq!(
        c.dims(),
        [batch, l, g, n],
        "ssd_scan: C must have the shape of B"
    );
    assert!(
        g > 0 && h.is_multiple_of(g),
        "ssd_scan: {g} groups must divide {h} heads"
    );
    if let Some(state) = &scan.initial_state {
        assert_eq!(
            state.dims(),
            [batch, h, p, n],
            "ssd_scan: the state must be [b, h, p, n]"
        );
    }
}
