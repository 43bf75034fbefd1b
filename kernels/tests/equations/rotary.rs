//! The rotary embedding.

use kernels::TrainBackend;
use kernels::dense::rotary::reference;

use crate::support::*;

fn rotary<B: TrainBackend>(x: &Values, cos: &Values, sin: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    trace.finish(kernels::rotary(x, tensor(cos.clone()), tensor(sin.clone())))
}

fn rotary_definition<B: TrainBackend>(x: &Values, cos: &Values, sin: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    let (cos, sin) = (tensor(cos.clone()), tensor(sin.clone()));
    trace.finish(reference::forward(x, cos, sin))
}

#[test]
fn rotary_is_right() {
    for [b, l, h, p, r] in [[1, 1, 1, 2, 1], [2, 19, 3, 16, 4], [2, 130, 2, 12, 6]] {
        // Not a rotation: the op does not ask that, and an exchange of cos and sin would show.
        let (cos, sin) = (random(2, &[l, r], 1.0), random(3, &[l, r], 1.0));
        check!(
            "rotary",
            rotary,
            rotary_definition,
            &random(1, &[b, l, h, p], 1.0),
            &cos,
            &sin
        );
    }
}
