//! One token through a discrete Mamba-2 mixer, between its two projections: what decoding does.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

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
}

/// What a mixer carries from one token to the next.
#[derive(Debug, Clone)]
pub struct StepState<B: Backend> {
    /// The last `w` inputs of the convolution, the latest last, `[b, c, w]`.
    pub conv: Tensor<B, 3>,
    /// The scan's state, `[b, h, p, n]`.
    pub ssm: Tensor<B, 4>,
}

/// The op, as backends compute it.
pub trait RecurrentStep: CausalConv + SkipGate {
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
/// `x, B, C` through one step of [`causal_conv`](crate::scan::causal_conv::causal_conv), `S = sigmoid(-A_log) S + x B^T`,
/// `(S C + d x) * silu(z + z_bias)`.
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
    B::recurrent_step(projected, parameters, state)
}
