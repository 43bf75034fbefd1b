//! Layer normalisation.

use kernels::TrainBackend;
use kernels::dense::layer_norm::reference;

use crate::support::*;

fn norm<B: TrainBackend>(x: &Values, gamma: &Values, beta: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma, beta) = (trace.input::<2>(x), trace.input(gamma), trace.input(beta));
    trace.finish(kernels::layer_norm(x, gamma, beta, 1e-5))
}

fn norm_definition<B: TrainBackend>(x: &Values, gamma: &Values, beta: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma, beta) = (trace.input(x), trace.input(gamma), trace.input(beta));
    trace.finish(reference::forward(x, gamma, beta, 1e-5))
}

#[test]
fn layer_norm_is_right() {
    for [t, d] in [[1, 3], [7, 48], [300, 192], [2, 129]] {
        let (gamma, beta) = (random(2, &[d], 1.0), random(3, &[d], 1.0));
        check!(
            "layer norm",
            norm,
            norm_definition,
            &random(1, &[t, d], 3.0),
            &gamma,
            &beta
        );
    }
}
