//! Stage 1's distance.

use burn::tensor::DType;
use kernels::losses::mixing_matrices::reference;
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("distance") {
        return;
    }
    let shapes: &[[usize; 4]] = if bench.small {
        &[[1, 256, 3, 64]]
    } else {
        &[[1, 2048, 32, 64], [4, 2048, 32, 64], [1, 8192, 32, 64]]
    };
    for &dtype in &bench.dtypes {
        for &[b, l, h, n] in shapes {
            let student = TransferParts {
                a_log: random::<B, 3>([b, l, h], DType::F32),
                b: random([b, l, h, n], dtype) * 0.1,
                c: random([b, l, h, n], dtype) * 0.1,
                d: random([h], dtype),
            };
            let teacher = AttentionParts {
                q: random([b, l, h, n], dtype),
                k: random([b, l, h, n], dtype),
                window: None,
                documents: None,
            };
            let given = || (student.clone(), teacher.clone());
            let forward = bench.clock.time(|_| {
                let (student, teacher) = given();
                B::mixing_distance_forward(student, teacher)
            });
            let both = bench.clock.time(|_| {
                let (student, teacher) = given();
                B::mixing_distance_with_gradients(student, teacher)
            });
            let composed = bench.small.then(|| {
                let forward = bench.clock.time(|_| {
                    let (student, teacher) = given();
                    reference::forward(student, teacher)
                });
                let both = bench.clock.time(|_| {
                    let (student, teacher) = given();
                    reference::with_gradients(student, teacher)
                });
                [forward, both]
            });
            bench.row(Row {
                op: "distance",
                shape: format!("b{b} l{l} h{h} n{n} d{n}"),
                dtype,
                seconds: [Some(forward), Some(both)],
                bytes: 6 * b * l * h * n * dtype.size(),
                // Seven products of half an l by l matrix's elements with n each.
                operations: 7 * b * h * l * l * n,
                composed: [0, 1].map(|i| composed.map(|times| times[i])),
            });
        }
    }
}
