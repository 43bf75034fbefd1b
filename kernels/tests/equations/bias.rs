//! A bias for every row.

use kernels::TrainBackend;
use kernels::dense::bias::reference;

use crate::support::*;

fn add_bias<B: TrainBackend>(x: &Values, bias: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, bias) = (trace.input::<2>(x), trace.input(bias));
    trace.finish(kernels::add_bias(x, bias))
}

fn add_bias_definition<B: TrainBackend>(x: &Values, bias: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, bias) = (trace.input(x), trace.input(bias));
    trace.finish(reference::forward(x, bias))
}

#[test]
fn bias_is_right() {
    for [t, d] in [[1, 1], [33, 9], [400, 101]] {
        let (x, bias) = (random(4, &[t, d], 1.0), random(5, &[d], 3.0));
        check!("bias", add_bias, add_bias_definition, &x, &bias);
    }
}
