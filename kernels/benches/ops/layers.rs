//! The ops of the layers and of the optimiser, at the sizes of the `tiny` preset.

use burn::tensor::{DType, Tensor};
use kernels::scan::skip_gate::SkipGateInputs;
use kernels::*;

use crate::clock::random as random_of;
use crate::table::{Bench, Row};

fn random<B: KernelBackend, const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    random_of(shape, DType::F32)
}

/// An op's row from what it computes, forward and backward apart.
struct Op {
    name: &'static str,
    shape: String,
    /// Numbers moved, and operations of products, forward and backward together.
    numbers: usize,
    operations: usize,
}

impl Op {
    fn time<B: KernelBackend, F, G>(
        self,
        bench: &Bench<B>,
        mut forward: impl FnMut() -> F,
        backward: Option<impl FnMut() -> G>,
    ) {
        if !bench.wants(self.name) {
            return;
        }
        let forward = bench.clock.time(|_| forward());
        let backward = backward.map(|mut backward| bench.clock.time(|_| backward()));
        bench.row(Row {
            op: self.name,
            shape: self.shape,
            dtype: DType::F32,
            seconds: [Some(forward), backward.map(|backward| forward + backward)],
            bytes: 4 * self.numbers,
            operations: self.operations,
            composed: [None; 2],
        });
    }
}

/// For ops of which only the way there is timed.
const NO_BACKWARD: Option<fn()> = None;

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.small {
        return;
    }
    // b sequences of l tokens; width d, MLP m, vocabulary v; h heads of p.
    let (b, l, d, m, v, h, p) = (4, 256, 192, 768, 4096, 3, 64);
    let t = b * l;

    for (i, o) in [(d, d), (d, m), (m, d), (d, v)] {
        let (x, w, bias, dy) = (
            random::<B, 2>([t, i]),
            random([o, i]),
            random([o]),
            random([t, o]),
        );
        let op = Op {
            name: "linear",
            shape: format!("{t} x {i} x {o}"),
            numbers: 4 * t * (i + o),
            operations: 6 * t * i * o,
        };
        op.time(
            bench,
            || B::linear_forward(x.clone(), w.clone(), Some(bias.clone())),
            Some(|| B::linear_backward(x.clone(), w.clone(), dy.clone(), [true; 3])),
        );
    }

    let (x, dy, gamma) = (random::<B, 2>([t, d]), random([t, d]), random([d]));
    let op = Op {
        name: "layer norm",
        shape: format!("{t} x {d}"),
        numbers: 5 * t * d,
        operations: 0,
    };
    op.time(
        bench,
        || B::layer_norm_forward(x.clone(), gamma.clone(), gamma.clone(), 1e-5),
        Some(|| B::layer_norm_backward(x.clone(), gamma.clone(), dy.clone(), 1e-5, [true; 3])),
    );

    let (x, dy) = (random::<B, 2>([t, m]), random([t, m]));
    let op = Op {
        name: "gelu",
        shape: format!("{t} x {m}"),
        numbers: 5 * t * m,
        operations: 0,
    };
    op.time(
        bench,
        || B::gelu_new_forward(x.clone()),
        Some(|| B::gelu_new_backward(x.clone(), dy.clone())),
    );

    let heads = || random::<B, 4>([b, l, h, p]);
    let (x, y, q, dy) = (heads(), heads(), heads(), heads());
    let (z, dz, skip) = (random::<B, 3>([b, l, d]), random([b, l, d]), random([h]));
    let op = Op {
        name: "skip and gate",
        shape: format!("b{b} l{l} h{h} p{p}"),
        numbers: 11 * t * d,
        operations: 0,
    };
    let given = SkipGateInputs {
        y: y.clone(),
        x: x.clone(),
        d: skip,
        z,
        z_bias: Some(gamma.clone()),
    };
    op.time(
        bench,
        || B::skip_gate_forward(given.clone()),
        Some(|| B::skip_gate_backward(given.clone(), dz.clone())),
    );

    let op = Op {
        name: "attention",
        shape: format!("b{b} l{l} h{h} p{p}"),
        numbers: 11 * t * d,
        // Two products of half an l by l matrix, and five backward.
        operations: 7 * b * h * l * l * p,
    };
    let (_, saved) =
        B::attention_forward_saving(q.clone(), x.clone(), y.clone(), Visible::default());
    op.time(
        bench,
        || B::attention_forward(q.clone(), x.clone(), y.clone(), Visible::default()),
        Some(|| {
            let (q, k, v) = (q.clone(), x.clone(), y.clone());
            B::attention_backward(q, k, v, saved.clone(), dy.clone(), Visible::default())
        }),
    );

    let size = 1 << 22;
    let step = AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 1,
    };
    let (gradient, scale) = (random::<B, 1>([size]), random([1]));
    let mut state = Some((random([size]), [random([size]), random([size])]));
    let op = |name, numbers| Op {
        name,
        shape: format!("{size}"),
        numbers,
        operations: 0,
    };
    op("AdamW", 7 * size).time(
        bench,
        || {
            let (parameter, moments) = state.take().expect("put back below");
            state = Some(B::adamw_step(
                parameter,
                gradient.clone(),
                moments,
                scale.clone(),
                step,
            ));
        },
        NO_BACKWARD,
    );
    op("squared norm", size).time(bench, || B::squared_norm(gradient.clone()), NO_BACKWARD);
}
