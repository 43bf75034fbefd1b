//! The scan, bare and with its epilogue.

use burn::tensor::{DType, Tensor};
use kernels::scan::ssd::{gated, reference};
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

struct Inputs<B: KernelBackend> {
    scan: ScanInputs<B>,
    epilogue: Epilogue<B>,
    dy: Tensor<B, 4>,
}

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    let long: &[([usize; 6], DType)] = &[
        ([8, 2048, 32, 32, 64, 64], DType::BF16),
        ([1, 2048, 32, 32, 64, 64], DType::BF16),
        ([1, 8192, 32, 32, 64, 64], DType::BF16),
        ([1, 32768, 32, 32, 64, 64], DType::BF16),
        ([1, 131072, 32, 32, 64, 64], DType::BF16),
        ([8, 2048, 32, 4, 64, 64], DType::BF16),
        ([8, 2048, 16, 16, 128, 128], DType::BF16),
        ([8, 2048, 32, 32, 64, 16], DType::BF16),
        // SmolLM2-135M's student in stages 3 and 2.
        ([16, 1024, 9, 9, 64, 64], DType::BF16),
        ([32, 512, 9, 9, 64, 64], DType::BF16),
        // Mamba-2's own.
        ([8, 2048, 128, 1, 64, 128], DType::BF16),
        ([8, 2048, 32, 32, 64, 64], DType::F32),
    ];
    let short: &[([usize; 6], DType)] = &[
        ([1, 256, 4, 4, 64, 64], DType::F32),
        ([1, 1024, 4, 4, 64, 64], DType::F32),
        ([4, 256, 3, 3, 64, 64], DType::F32),
    ];
    for &(sizes, dtype) in if bench.small { short } else { long } {
        if !bench.dtypes.contains(&dtype) {
            continue;
        }
        if bench.wants("scan") {
            bare(bench, sizes, dtype);
        }
        if bench.wants("gated scan") || bench.wants("gated") {
            with_epilogue(bench, sizes, dtype);
        }
    }
}

fn inputs<B: KernelBackend>([b, l, h, g, p, n]: [usize; 6], dtype: DType) -> [Inputs<B>; 2] {
    [(); 2].map(|()| Inputs {
        scan: ScanInputs {
            x: random([b, l, h, p], dtype),
            a_log: random([b, l, h], DType::F32),
            b: random([b, l, g, n], dtype),
            c: random([b, l, g, n], dtype),
            initial_state: None,
        },
        epilogue: Epilogue {
            d: Some(random([h], DType::F32)),
            z: Some(random([b, l, h * p], dtype)),
            z_bias: Some(random([h * p], DType::F32)),
        },
        dy: random([b, l, h, p], dtype),
    })
}

/// Bytes of x, of B, and of a_log.
fn sizes_of([b, l, h, g, p, n]: [usize; 6], dtype: DType) -> [usize; 3] {
    [
        b * l * h * p * dtype.size(),
        b * l * g * n * dtype.size(),
        b * l * h * 4,
    ]
}

/// Operations of the least products forward and backward, in chunks of 64.
fn operations([b, l, h, _, p, n]: [usize; 6]) -> usize {
    let forward = 64 * (n + p) + 2 * n * p;
    // Scores and those of the gradient twice, and four products with each.
    let backward = 64 * (3 * p + 3 * n) + 5 * n * p;
    2 * b * l * h * (forward + backward)
}

fn shape([b, l, h, g, p, n]: [usize; 6]) -> String {
    format!("b{b} l{l} h{h} g{g} p{p} n{n}")
}

fn bare<B: KernelBackend>(bench: &Bench<B>, sizes: [usize; 6], dtype: DType) {
    let inputs = inputs::<B>(sizes, dtype);
    type Forward<B> = fn(ScanInputs<B>) -> (Tensor<B, 4>, Tensor<B, 4>);
    type Backward<B> = fn(ScanInputs<B>, Tensor<B, 4>) -> SsdGradients<B>;
    let time = |forward: Forward<B>, backward: Backward<B>| {
        let forward = bench.clock.time(|i| forward(inputs[i % 2].scan.clone()));
        let backward = bench.clock.time(|i| {
            let Inputs { scan, dy, .. } = &inputs[i % 2];
            backward(scan.clone(), dy.clone())
        });
        [Some(forward), Some(forward + backward)]
    };
    let seconds = time(
        |scan| B::ssd_scan_forward(scan, 64),
        |scan, dy| B::ssd_scan_backward(scan, dy, 64),
    );
    let composed = if bench.small {
        time(
            |scan| reference::forward(scan, 64),
            |scan, dy| reference::backward(scan, dy, 64),
        )
    } else {
        [None; 2]
    };
    let [wide, narrow, decays] = sizes_of(sizes, dtype);
    bench.row(Row {
        op: "scan",
        shape: shape(sizes),
        dtype,
        seconds,
        bytes: 5 * wide + 6 * narrow + 3 * decays,
        operations: operations(sizes),
        composed,
    });
}

fn with_epilogue<B: KernelBackend>(bench: &Bench<B>, sizes: [usize; 6], dtype: DType) {
    let inputs = inputs::<B>(sizes, dtype);
    let forward = |i: usize| {
        let Inputs { scan, epilogue, .. } = &inputs[i % 2];
        B::gated_scan_forward(scan.clone(), epilogue.clone(), 64, true)
    };
    let ys = [0, 1].map(|i| forward(i).kept);
    let backward = |i: usize| {
        let Inputs { scan, epilogue, dy } = &inputs[i % 2];
        let y = ys[i % 2].clone();
        B::gated_scan_backward(scan.clone(), epilogue.clone(), y, dy.clone(), 64)
    };
    let forward_seconds = bench.clock.time(forward);
    let backward_seconds = bench.clock.time(backward);
    // As two ops.
    let ys = [0, 1].map(|i| {
        let Inputs { scan, epilogue, .. } = &inputs[i];
        gated::forward(scan.clone(), epilogue.clone(), 64).kept
    });
    let composed_forward = bench.clock.time(|i| {
        let Inputs { scan, epilogue, .. } = &inputs[i % 2];
        gated::forward(scan.clone(), epilogue.clone(), 64)
    });
    let composed_backward = bench.clock.time(|i| {
        let Inputs { scan, epilogue, dy } = &inputs[i % 2];
        let y = ys[i % 2].clone().expect("kept for the way back");
        gated::backward(scan.clone(), epilogue.clone(), y, dy.clone(), 64)
    });
    let [wide, narrow, decays] = sizes_of(sizes, dtype);
    bench.row(Row {
        op: "gated scan (two ops)",
        shape: shape(sizes),
        dtype,
        seconds: [
            Some(forward_seconds),
            Some(forward_seconds + backward_seconds),
        ],
        bytes: 8 * wide + 6 * narrow + 3 * decays,
        operations: operations(sizes),
        composed: [
            Some(composed_forward),
            Some(composed_forward + composed_backward),
        ],
    });
}
