//! The linear layer.

use kernels::TrainBackend;
use kernels::dense::linear::reference;

use crate::support::*;

fn linear<B: TrainBackend>(x: &Values, w: &Values, bias: Option<&Values>) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, w) = (trace.input::<3>(x), trace.input(w));
    let bias = bias.map(|bias| trace.input(bias));
    trace.finish(kernels::linear(x, w, bias))
}

fn linear_definition<B: TrainBackend>(
    x: &Values,
    w: &Values,
    bias: Option<&Values>,
) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, w) = (trace.input::<3>(x), trace.input::<2>(w));
    let bias = bias.map(|bias| trace.input(bias));
    let ([b, l, i], [o, _]) = (x.dims(), w.dims());
    let y = reference::forward(x.reshape([b * l, i]), w, bias);
    trace.finish(y.reshape([b, l, o]))
}

#[test]
fn linear_is_right() {
    for [b, l, i, o] in [
        [2, 3, 5, 7],
        [1, 1, 64, 3],
        [3, 100, 48, 130],
        [4, 128, 96, 96],
    ] {
        let (x, w) = (random(1, &[b, l, i], 1.0), random(2, &[o, i], 1.0));
        let bias = random(3, &[o], 1.0);
        check!(
            "linear with bias",
            linear,
            linear_definition,
            &x,
            &w,
            Some(&bias)
        );
        check!("linear", linear, linear_definition, &x, &w, None);
    }
}
