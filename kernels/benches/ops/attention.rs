//! Causal attention of whole passes, at the sizes of Phi-1.5.

use burn::tensor::{DType, Tensor};
use kernels::dense::attention::reference;
use kernels::{KernelBackend, attention};

use crate::clock::random;
use crate::table::{Bench, Row};

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("attention") {
        return;
    }
    // Batch, queries, positions, heads, head dimension.
    let shapes: &[[usize; 5]] = if bench.small {
        &[[1, 256, 256, 3, 64]]
    } else {
        &[
            [4, 2048, 2048, 32, 64],
            [1, 16384, 16384, 32, 64],
            [1, 512, 16384, 32, 64],
            [4, 2048, 2048, 16, 128],
        ]
    };
    for &dtype in &bench.dtypes {
        for &[b, l, t, h, p] in shapes {
            // In f32 a long sequence takes long.
            if dtype == DType::F32 && l * t > 1 << 24 {
                continue;
            }
            let q: Tensor<B, 4> = random([b, l, h, p], dtype);
            let k: Tensor<B, 4> = random([b, t, h, p], dtype);
            let v: Tensor<B, 4> = random([b, t, h, p], dtype);
            let given = || (q.clone(), k.clone(), v.clone());
            let forward = bench.clock.time(|_| {
                let (q, k, v) = given();
                attention(q, k, v)
            });
            let composed = bench.small.then(|| {
                bench.clock.time(|_| {
                    let (q, k, v) = given();
                    reference::forward(q, k, v)
                })
            });
            bench.row(Row {
                op: "attention",
                shape: if l == t {
                    format!("b{b} l{l} h{h} p{p}")
                } else {
                    format!("b{b} l{l} t{t} h{h} p{p}")
                },
                dtype,
                seconds: [Some(forward), None],
                bytes: 2 * b * (l + t) * h * p * dtype.size(),
                // Two products of the scores that there are with p each.
                operations: 4 * b * h * p * (l * (t - l) + l * (l + 1) / 2),
                composed: [composed, None],
            });
        }
    }
}
