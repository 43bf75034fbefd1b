//! The recurrent step.

use burn::tensor::{DType, Tensor};
use kernels::decode::recurrent_step::reference;
use kernels::scan::causal_conv::Activation;
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("step") {
        return;
    }
    let batches: &[usize] = if bench.small {
        &[1, 8]
    } else {
        &[1, 8, 64, 256]
    };
    let [h, p, n, w] = [32, 64, 64, 4];
    for &dtype in &bench.dtypes {
        for &b in batches {
            let c = h * (p + 2 * n);
            let parameters = StepParameters {
                taps: random::<B, 3>([c, 1, w], dtype),
                bias: Some(random([c], dtype)),
                activation: Activation::Identity,
                d: random([h], dtype),
                z_bias: Some(random([h * p], dtype)),
                a_log_bias: None,
                bc_norms: None,
                turn: None,
            };
            let projected = random([b, c + h * p + h], dtype);
            // More states than a cache holds.
            let sets = if b > 64 { 2 } else { 8 };
            let states = || -> Vec<_> {
                let state = |_| StepState {
                    conv: random([b, c, w], dtype),
                    ssm: random([b, h, p, n], DType::F32),
                };
                (0..sets).map(state).map(Some).collect()
            };
            let seconds = time(bench, &projected, &parameters, states(), B::recurrent_step);
            let composed = bench
                .small
                .then(|| time(bench, &projected, &parameters, states(), reference::step));
            let projections = b * (c + 2 * h * p + h);
            bench.row(Row {
                op: "step",
                shape: format!("b{b} h{h} p{p} n{n} w{w}"),
                dtype,
                seconds: [Some(seconds), None],
                bytes: 8 * b * h * p * n + (2 * b * c * w + projections) * dtype.size(),
                operations: 0,
                composed: [composed, None],
            });
        }
    }
}

type Step<B> = fn(Tensor<B, 2>, StepParameters<B>, StepState<B>) -> (Tensor<B, 2>, StepState<B>);

fn time<B: KernelBackend>(
    bench: &Bench<B>,
    projected: &Tensor<B, 2>,
    parameters: &StepParameters<B>,
    mut states: Vec<Option<StepState<B>>>,
    step: Step<B>,
) -> f64 {
    // A token that nothing else holds is written over; it is made anew where one is timed.
    let mut turn = 0;
    let whole = bench.clock.time(|_| {
        turn = (turn + 1) % states.len();
        let state = states[turn].take().expect("put back below");
        let token = projected.clone().mul_scalar(1.0);
        let (_, after) = step(token, parameters.clone(), state);
        states[turn] = Some(after);
    });
    let token = bench.clock.time(|_| projected.clone().mul_scalar(1.0));
    whole - token
}
