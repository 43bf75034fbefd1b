//! As one CubeCL launch: a cube a batch and head reads and writes its state once.

mod kernels;
mod launch;
mod layout;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::launch::{Operands, step};
use self::layout::PARTIALS;
use super::{RecurrentStep, StepParameters, StepState, reference};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> RecurrentStep for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        if !fits(&projected, &parameters, &state) {
            return reference::step(projected, parameters, state);
        }
        let (output, conv, ssm) = step(Operands {
            projected: inner(projected),
            taps: inner(parameters.taps),
            bias: parameters.bias.map(inner),
            activation: parameters.activation,
            d: inner(parameters.d),
            z_bias: parameters.z_bias.map(inner),
            a_log_bias: parameters.a_log_bias.map(inner),
            bc_norms: (parameters.bc_norms)
                .map(|norms| norms.map(|norm| (inner(norm.gamma), norm.epsilon as f32))),
            turn: parameters
                .turn
                .map(|turn| [inner(turn.cos), inner(turn.sin)]),
            conv: inner(state.conv),
            ssm: inner(state.ssm),
        });
        let state = StepState {
            conv: tensor(conv),
            ssm: tensor(ssm),
        };
        (tensor(output), state)
    }
}

/// Whether there is a kernel for these: the state is f32, the parameters share a dtype, and so do
/// the angles, and a head's rows fit in shared memory.
fn fits<B: Backend>(
    projected: &Tensor<B, 2>,
    parameters: &StepParameters<B>,
    state: &StepState<B>,
) -> bool {
    let [_, _, p, _] = state.ssm.dims();
    let small = parameters.taps.dtype();
    let biases = [&parameters.bias, &parameters.z_bias, &parameters.a_log_bias];
    let mut norms = parameters.bc_norms.iter().flatten();
    let angles = parameters.turn.as_ref();
    let angles = angles.map(|turn| [turn.cos.dtype(), turn.sin.dtype()]);
    let all = [projected.dtype(), state.conv.dtype(), small];
    all.into_iter().all(computes_in_f32)
        && state.ssm.dtype() == DType::F32
        && 2 * p <= PARTIALS
        && parameters.d.dtype() == small
        && biases
            .into_iter()
            .flatten()
            .all(|bias| bias.dtype() == small)
        && norms.all(|norm| norm.gamma.dtype() == small)
        && angles.is_none_or(|[cos, sin]| cos == sin && computes_in_f32(cos))
}
