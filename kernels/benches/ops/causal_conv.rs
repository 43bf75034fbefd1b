//! The convolution.

use kernels::scan::causal_conv::{Activation, ConvInputs, reference};
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("convolution") {
        return;
    }
    // Phi-1.5's student, and SmolLM2-135M's in stage 3.
    let sizes: &[[usize; 4]] = if bench.small {
        &[[4, 256, 192, 4]]
    } else {
        &[[8, 2048, 6144, 4], [16, 1024, 1728, 4]]
    };
    for &sizes in sizes {
        of(bench, sizes);
    }
}

fn of<B: KernelBackend>(bench: &Bench<B>, [b, l, c, w]: [usize; 4]) {
    for &dtype in &bench.dtypes {
        let inputs = [(); 2].map(|()| (random::<B, 3>([b, l, c], dtype), random([b, l, c], dtype)));
        let (weight, bias) = (random([c, w], dtype), random([c], dtype));
        for activation in [Activation::Identity, Activation::Silu] {
            let given = |i: usize| {
                let (x, dy) = inputs[i % 2].clone();
                let inputs = ConvInputs {
                    x,
                    weight: weight.clone(),
                    bias: Some(bias.clone()),
                    history: None,
                    activation,
                    documents: None,
                };
                (inputs, dy)
            };
            let forward = bench.clock.time(|i| B::causal_conv_forward(given(i).0));
            let backward = bench.clock.time(|i| {
                let (inputs, dy) = given(i);
                B::causal_conv_backward(inputs, dy, [true; 4])
            });
            let composed = bench.small.then(|| {
                let forward = bench.clock.time(|i| reference::forward(given(i).0));
                let backward = bench.clock.time(|i| {
                    let (inputs, dy) = given(i);
                    reference::backward(inputs, dy, [true; 4])
                });
                [forward, forward + backward]
            });
            bench.row(Row {
                op: "convolution",
                shape: format!("b{b} l{l} c{c} w{w} {activation:?}"),
                dtype,
                seconds: [Some(forward), Some(forward + backward)],
                bytes: 5 * b * l * c * dtype.size(),
                operations: 0,
                composed: [0, 1].map(|i| composed.map(|times| times[i])),
            });
        }
    }
}
