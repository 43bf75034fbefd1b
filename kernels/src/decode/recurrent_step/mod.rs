//! The decoding step of a discrete Mamba-2 mixer for one token, between the mixer's two projections.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dense::rms_norm::RmsNorm;
use crate::dense::rotary::Rotary;
use crate::dtype::assert_one_width;
use crate::scan::causal_conv::{Activation, CausalConv};
use crate::scan::skip_gate::SkipGate;

/// The parameters of a mixer that are not in its projections.
#[derive(Debug, Clone)]
pub struct StepParameters<B: Backend> {
    /// The convolution's weight as files have it, `[c, 1, w]`; see [`causal_conv`](crate::scan::causal_conv::causal_conv).
    pub taps: Tensor<B, 3>,
    /// The convolution's bias, `[c]`.
    pub bias: Option<Tensor<B, 1>>,
    /// What follows the convolution.
    pub activation: Activation,
    /// The skip, `[h]`.
    pub d: Tensor<B, 1>,
    /// The gate's bias, `[h * p]`.
    pub z_bias: Option<Tensor<B, 1>>,
    /// Added to A_log, `[h]`.
    pub a_log_bias: Option<Tensor<B, 1>>,
    /// The norms of B and of C, if they are normalised.
    pub bc_norms: Option<[HeadNorm<B>; 2]>,
    /// The rotation of each row of the scan's state before the token, if B and C have rotary positions.
    pub turn: Option<Turn<B>>,
}

/// A root-mean-square normalisation of the `n` numbers of each head, behind the convolution: see
/// [`rms_norm`](crate::dense::rms_norm::rms_norm).
#[derive(Debug, Clone)]
pub struct HeadNorm<B: Backend> {
    /// `[n]`.
    pub gamma: Tensor<B, 1>,
    /// Added to the mean square.
    pub epsilon: f64,
}

/// The angles of a rotation of the pairs `(i, i + r)`, `i < r`, along n: see
/// [`rotary`](crate::dense::rotary::rotary).
///
/// With rotary positions, B and C enter products `C_t . R(s - t) B_s`, which depend only on the distance `s - t`. So
/// the state is stored relative to its latest token, and is turned back by one position for each new token. No absolute
/// position is needed, and the rows of a batch may be at different positions.
#[derive(Debug, Clone)]
pub struct Turn<B: Backend> {
    /// `[1, r]`.
    pub cos: Tensor<B, 2>,
    /// `[1, r]`.
    pub sin: Tensor<B, 2>,
}

impl<B: Rotary> Turn<B> {
    /// `ssm [b, h, p, n]` turned along n; in place, where the backend can and nothing else holds it.
    pub fn apply(self, ssm: Tensor<B, 4>) -> Tensor<B, 4> {
        let [b, h, p, n] = ssm.dims();
        let rows = b * h * p;
        let turned = B::rotary_of_heads(ssm.reshape([1, 1, rows, n]), self.cos, self.sin, rows);
        turned.reshape([b, h, p, n])
    }
}

/// The state of a mixer between one token and the next.
#[derive(Debug, Clone)]
pub struct StepState<B: Backend> {
    /// The last `w` inputs of the convolution, the latest last, `[b, c, w]`.
    pub conv: Tensor<B, 3>,
    /// The scan's state, `[b, h, p, n]`.
    pub ssm: Tensor<B, 4>,
}

/// The op, as backends compute it.
pub trait RecurrentStep: CausalConv + SkipGate + Rotary + RmsNorm {
    /// See [`recurrent_step`]. No gradient passes through it.
    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        reference::step(projected, parameters, state)
    }
}

by_default!(RecurrentStep for ndarray, autodiff);

/// From `projected [b, c + h * p + h]`, a token's `[x | B | C | z | A_log]` with `c = h * p + 2 * g * n`
/// channels before z, to the gated output `[b, h * p]` and the state after the token:
///
/// `x, B, C` through one step of [`causal_conv`](crate::scan::causal_conv::causal_conv), B and C through their norms,
/// `S = sigmoid(-A_log - a_log_bias) turned(S) + x B^T`, `(S C + d x) * silu(z + z_bias)`.
///
/// A backend may write over the state if nothing else holds it.
///
/// # Panics
/// If the shapes do not fit together as above, or some inputs are f64 and others not.
pub fn recurrent_step<B: RecurrentStep>(
    projected: Tensor<B, 2>,
    parameters: StepParameters<B>,
    state: StepState<B>,
) -> (Tensor<B, 2>, StepState<B>) {
    let [b, h, p, n] = state.ssm.dims();
    let [_, c, w] = state.conv.dims();
    let mut dtypes = vec![projected.dtype(), state.conv.dtype(), state.ssm.dtype()];
    dtypes.extend([parameters.taps.dtype(), parameters.d.dtype()]);
    dtypes.extend(parameters.bias.as_ref().map(Tensor::dtype));
    dtypes.extend(parameters.z_bias.as_ref().map(Tensor::dtype));
    dtypes.extend(parameters.a_log_bias.as_ref().map(Tensor::dtype));
    let norms = parameters.bc_norms.iter().flatten();
    dtypes.extend(norms.clone().map(|norm| norm.gamma.dtype()));
    assert_one_width("recurrent_step", &dtypes);
    assert!(
        c > h * p && (c - h * p).is_multiple_of(2 * n),
        "recurrent_step: {c} channels are not {h} heads of {p} and groups of two times {n}"
    );
    let g = (c - h * p) / (2 * n);
    assert!(
        h.is_multiple_of(g),
        "recurrent_step: {g} groups must divide {h} heads"
    );
    assert_eq!(
        projected.dims(),
        [b, c + h * p + h],
        "recurrent_step: projected must be [b, c + h * p + h]"
    );
    assert_eq!(
        state.conv.dims(),
        [b, c, w],
        "recurrent_step: the convolution's state must be [b, c, w]"
    );
    assert_eq!(
        parameters.taps.dims(),
        [c, 1, w],
        "recurrent_step: the taps must be [c, 1, w]"
    );
    assert_eq!(
        parameters.d.dims(),
        [h],
        "recurrent_step: d must have one element a head"
    );
    if let Some(bias) = &parameters.bias {
        assert_eq!(
            bias.dims(),
            [c],
            "recurrent_step: the bias must have {c} elements"
        );
    }
    if let Some(z_bias) = &parameters.z_bias {
        assert_eq!(
            z_bias.dims(),
            [h * p],
            "recurrent_step: z_bias must have h * p elements"
        );
    }
    if let Some(bias) = &parameters.a_log_bias {
        assert_eq!(
            bias.dims(),
            [h],
            "recurrent_step: a_log_bias must have one element a head"
        );
    }
    for norm in norms {
        assert_eq!(
            norm.gamma.dims(),
            [n],
            "recurrent_step: the norms of B and C must have {n} elements"
        );
    }
    if let Some(turn) = &parameters.turn {
        let [_, r] = turn.cos.dims();
        assert!(
            turn.cos.dims() == [1, r] && turn.sin.dims() == [1, r] && 2 * r <= n,
            "recurrent_step: the angles must be [1, r] with at most half of the state's {n} numbers"
        );
    }
    B::recurrent_step(projected, parameters, state)
}
