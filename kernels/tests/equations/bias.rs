//! A bias for every row.

use kernels::TrainBackend;
use kernels::dense::bias::reference;

use crate::support::*;

fn add_bias<B: TrainBackend>(x: &Values, bias: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, bias) = (trace.input::<3>(x), trace.input(bias));
    trace.finish(kernels::add_bias(x, bias))
}

fn add_bias_definition<B: TrainBackend>(x: &Values, bias: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, bias) = (trace.input(x), trace.input(bias));
    trace.finish(reference::forward(x, bias))
}

#[test]
fn bias_is_right() {
    for [b, l, d] in [[1, 1, 1], [3, 11, 9], [4, 100, 101]] {
        let (x, bias) = (random(4, &[b, l, d], 1.0), random(5, &[d], 3.0));
        check!("bias", add_bias, add_bias_definition, &x, &bias);
    }
}
