//! The matrix products of a model of Phi's size, one row each.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::dense::linear::reference;

use crate::clock::random;
use crate::table::{Bench, Row};

/// Tokens, and the sizes of a layer's input and output.
const LAYERS: [[usize; 3]; 6] = [
    [8192, 2048, 8192],
    [8192, 8192, 2048],
    [8192, 2048, 2048],
    [32768, 2048, 8192],
    [2048, 2048, 51200],
    [1, 2048, 8192],
];

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    let dtype = DType::BF16;
    if bench.small || !bench.wants("products") || !bench.dtypes.contains(&dtype) {
        return;
    }
    for (i, sizes) in LAYERS.into_iter().enumerate() {
        layer(bench, dtype, sizes, i == 0);
    }
}

/// One layer's rows; beside some of them Burn's own products, where asked for.
fn layer<B: KernelBackend>(bench: &Bench<B>, dtype: DType, [t, i, o]: [usize; 3], beside: bool) {
    let inputs = [(); 2].map(|()| (random([t, i], dtype), random([t, o], dtype)));
    let (weight, bias) = (random::<B, 2>([o, i], dtype), random::<B, 1>([o], dtype));
    let input = |round: usize| inputs[round % 2].clone();
    let bias = || Some(bias.clone());
    let row = |what: &str, seconds: f64, composed: Option<f64>| {
        bench.row(Row {
            op: "products",
            shape: format!("{t} x {i} to {o}, {what}"),
            dtype,
            seconds: [Some(seconds), None],
            bytes: (t * i + i * o + t * o) * dtype.size(),
            operations: 2 * t * i * o,
            composed: [composed, None],
        });
    };
    let clock = &bench.clock;

    let forward = clock.time(|round| B::linear_forward(input(round).0, weight.clone(), None));
    let composed = beside
        .then(|| clock.time(|round| reference::forward::<B>(input(round).0, weight.clone(), None)));
    row("forward", forward, composed);
    let biased = clock.time(|round| B::linear_forward(input(round).0, weight.clone(), bias()));
    row("forward, bias", biased, None);
    let gelu = clock.time(|round| B::linear_gelu(input(round).0, weight.clone(), bias()));
    row("forward, bias, gelu", gelu, None);
    let onto = clock.time(|round| {
        let (x, residual) = input(round);
        B::linear_onto(residual, x, weight.clone(), bias())
    });
    row("forward, bias, onto", onto, None);

    let gradient = |what: &str, wanted: [bool; 3]| {
        let seconds = clock.time(|round| {
            let (x, dy) = input(round);
            B::linear_backward(x, weight.clone(), dy, wanted)
        });
        let composed = beside.then(|| {
            clock.time(|round| {
                let (x, dy) = input(round);
                reference::backward::<B>(x, weight.clone(), dy, wanted)
            })
        });
        row(what, seconds, composed);
    };
    gradient("dx", [true, false, false]);
    gradient("dW", [false, true, false]);
    gradient("dW, dbias", [false, true, true]);
}
