//! The causal convolution.

use kernels::TrainBackend;
use kernels::runtime::NdArray64;
use kernels::scan::causal_conv::{Activation, ConvInputs, reference};
use tests::assert_close;

use crate::support::*;

struct Conv {
    x: Values,
    weight: Values,
    bias: Option<Values>,
    history: Option<Values>,
    activation: Activation,
}

fn conv<B: TrainBackend>(c: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, weight) = (trace.input(&c.x), trace.input(&c.weight));
    let bias = c.bias.as_ref().map(|bias| trace.input(bias));
    let history = c.history.as_ref().map(|history| trace.input(history));
    trace.finish(kernels::causal_conv(x, weight, bias, history, c.activation))
}

fn conv_definition<B: TrainBackend>(c: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, weight) = (trace.input(&c.x), trace.input(&c.weight));
    let bias = c.bias.as_ref().map(|bias| trace.input(bias));
    let history = c.history.as_ref().map(|history| trace.input(history));
    trace.finish(reference::forward(ConvInputs {
        x,
        weight,
        bias,
        history,
        activation: c.activation,
        documents: None,
    }))
}

#[test]
fn causal_conv_is_right() {
    for [b, l, c, w] in [
        [1, 1, 3, 4],
        [2, 2, 5, 4],
        [3, 40, 17, 2],
        [2, 700, 24, 4],
        [2, 9, 4, 1],
    ] {
        let history = (w > 1).then(|| random(4, &[b, w - 1, c], 1.0));
        for (bias, history, activation) in [
            (None, None, Activation::Identity),
            (Some(random(3, &[c], 1.0)), None, Activation::Silu),
            (
                Some(random(3, &[c], 1.0)),
                history.clone(),
                Activation::Identity,
            ),
            (None, history, Activation::Silu),
        ] {
            let (x, weight) = (random(1, &[b, l, c], 1.0), random(2, &[c, w], 1.0));
            let case = Conv {
                x,
                weight,
                bias,
                history,
                activation,
            };
            check!(
                format!("conv {:?}", [b, l, c, w]),
                conv,
                conv_definition,
                &case
            );
        }
    }
}

/// The convolution written out, one number at a time.
#[test]
fn causal_conv_equals_its_equation() {
    let [b, l, c, w] = [2, 6, 3, 4];
    let (x, weight) = (random(1, &[b, l, c], 1.0), random(2, &[c, w], 1.0));
    let (input, taps) = (tensor(x.clone()), tensor(weight.clone()));
    let y = kernels::causal_conv::<NdArray64>(input, taps, None, None, Activation::Identity);
    let mut expected = vec![];
    for (i, t, ch) in
        (0..b).flat_map(|i| (0..l).flat_map(move |t| (0..c).map(move |ch| (i, t, ch))))
    {
        let input = |at: usize| x.1[(i * l + at) * c + ch];
        let taps = (0..w).filter(|k| t + k >= w - 1);
        expected.push(
            taps.map(|k| weight.1[ch * w + k] * input(t + k - (w - 1)))
                .sum(),
        );
    }
    assert_close("conv", values(y), (vec![b, l, c], expected), 1e-14);
}
