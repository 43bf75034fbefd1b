//! GELU.

use kernels::TrainBackend;
use kernels::dense::gelu::reference;

use crate::support::*;

fn gelu<B: TrainBackend>(x: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input::<2>(x);
    trace.finish(kernels::gelu_new(x))
}

fn gelu_definition<B: TrainBackend>(x: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    trace.finish(reference::forward(x))
}

#[test]
fn gelu_is_right() {
    for scale in [0.1, 3.0, 30.0] {
        check!("gelu", gelu, gelu_definition, &random(4, &[33, 50], scale));
    }
}
