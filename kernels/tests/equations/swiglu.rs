//! The gated activation.

use kernels::TrainBackend;
use kernels::dense::swiglu::reference;
use kernels::runtime::NdArray64;
use tests::assert_close;

use crate::support::*;

fn swiglu<B: TrainBackend>(gate: &Values, up: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (gate, up) = (trace.input::<2>(gate), trace.input(up));
    trace.finish(kernels::swiglu(gate, up))
}

fn swiglu_definition<B: TrainBackend>(gate: &Values, up: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (gate, up) = (trace.input(gate), trace.input(up));
    trace.finish(reference::forward(gate, up))
}

#[test]
fn swiglu_is_right() {
    for scale in [0.1, 3.0, 30.0] {
        for shape in [[33, 50], [400, 101]] {
            let (gate, up) = (random(4, &shape, scale), random(5, &shape, 1.0));
            check!("swiglu", swiglu, swiglu_definition, &gate, &up);
        }
    }
}

#[test]
fn swiglu_equals_its_equation() {
    let (gate, up) = (random(1, &[2, 3, 4], 5.0), random(2, &[2, 3, 4], 1.0));
    let y = kernels::swiglu::<NdArray64, 3>(tensor(gate.clone()), tensor(up.clone()));
    let expected = gate.1.iter().zip(&up.1);
    let expected = expected.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
    assert_close("y", values(y), (gate.0, expected.collect()), 1e-14);
}
