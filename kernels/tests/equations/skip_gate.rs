//! The skip and the gate.

use kernels::TrainBackend;
use kernels::scan::skip_gate::{SkipGateInputs, reference};

use crate::support::*;

struct Gate {
    y: Values,
    x: Values,
    d: Values,
    z: Values,
    bias: Option<Values>,
}

fn gate<B: TrainBackend>(g: &Gate) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (y, x, d, z) = (
        trace.input(&g.y),
        trace.input(&g.x),
        trace.input(&g.d),
        trace.input(&g.z),
    );
    let bias = g.bias.as_ref().map(|bias| trace.input(bias));
    trace.finish(kernels::skip_gate(y, x, d, z, bias))
}

fn gate_definition<B: TrainBackend>(g: &Gate) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (y, x, d, z) = (
        trace.input(&g.y),
        trace.input(&g.x),
        trace.input(&g.d),
        trace.input(&g.z),
    );
    let bias = g.bias.as_ref().map(|bias| trace.input(bias));
    trace.finish(reference::forward(SkipGateInputs {
        y,
        x,
        d,
        z,
        z_bias: bias,
    }))
}

#[test]
fn skip_gate_is_right() {
    for [b, l, h, p] in [[1, 1, 1, 1], [2, 37, 4, 12], [1, 150, 2, 64]] {
        let shape = [b, l, h, p];
        for bias in [None, Some(random(5, &[h * p], 2.0))] {
            let g = Gate {
                y: random(1, &shape, 1.0),
                x: random(2, &shape, 1.0),
                d: random(3, &[h], 1.0),
                z: random(4, &[b, l, h * p], 4.0),
                bias,
            };
            check!("skip and gate", gate, gate_definition, &g);
        }
    }
}
