//! The element-wise work of a training pass, at the sizes of Phi-1.5. Its floor is the time to move its bytes.

use burn::tensor::{DType, Tensor};
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

/// Tokens, width, and width of the MLP.
const SHAPE: [usize; 3] = [8192, 2048, 8192];
/// The same at the sizes of SmolLM2-135M.
const SMALL: [usize; 3] = [16_384, 576, 1536];
/// Elements of the largest parameter.
const LARGEST: usize = 51_200 * 2048;

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if bench.small {
        return;
    }
    for &dtype in &bench.dtypes {
        norm(bench, dtype);
        gelu(bench, dtype);
        rms_norm(bench, dtype);
        swiglu(bench, dtype);
    }
    for &dtype in &bench.dtypes {
        adamw(bench, dtype);
        norms(bench, dtype);
    }
}

/// A row of what moves `bytes`, forward and backward together.
fn row<B: KernelBackend>(
    bench: &Bench<B>,
    (op, shape, dtype): (&'static str, String, DType),
    seconds: [f64; 2],
    bytes: usize,
) {
    let [forward, backward] = seconds;
    bench.row(Row {
        op,
        shape,
        dtype,
        seconds: [
            Some(forward),
            (backward > 0.0).then_some(forward + backward),
        ],
        bytes,
        operations: 0,
        composed: [None; 2],
    });
}

fn norm<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("layer norm") {
        return;
    }
    let [t, d, _] = SHAPE;
    let (x, dy) = (random::<B, 2>([t, d], dtype), random([t, d], dtype));
    let gamma = random::<B, 1>([d], DType::F32);
    let forward = bench
        .clock
        .time(|_| B::layer_norm_forward(x.clone(), gamma.clone(), gamma.clone(), 1e-5));
    for wanted in [[true; 3], [true, false, false]] {
        let backward = bench
            .clock
            .time(|_| B::layer_norm_backward(x.clone(), gamma.clone(), dy.clone(), 1e-5, wanted));
        let shape = if wanted[1] {
            format!("{t} x {d}")
        } else {
            format!("{t} x {d}, frozen")
        };
        let bytes = 5 * t * d * dtype.size();
        row(
            bench,
            ("layer norm", shape, dtype),
            [forward, backward],
            bytes,
        );
    }
}

fn gelu<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("gelu") {
        return;
    }
    let [t, _, m] = SHAPE;
    let (x, dy) = (random::<B, 2>([t, m], dtype), random([t, m], dtype));
    let forward = bench.clock.time(|_| B::gelu_new_forward(x.clone()));
    let backward = bench
        .clock
        .time(|_| B::gelu_new_backward(x.clone(), dy.clone()));
    let bytes = 5 * t * m * dtype.size();
    let name = ("gelu", format!("{t} x {m}"), dtype);
    row(bench, name, [forward, backward], bytes);
}

fn rms_norm<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("rms norm") {
        return;
    }
    let [t, d, _] = SMALL;
    let (x, dy) = (random::<B, 2>([t, d], dtype), random([t, d], dtype));
    let gamma = random::<B, 1>([d], dtype);
    let forward = bench
        .clock
        .time(|_| B::rms_norm_forward(x.clone(), gamma.clone(), 1e-5));
    let backward = bench
        .clock
        .time(|_| B::rms_norm_backward(x.clone(), gamma.clone(), dy.clone(), 1e-5, [true; 2]));
    let bytes = 5 * t * d * dtype.size();
    let name = ("rms norm", format!("{t} x {d}"), dtype);
    row(bench, name, [forward, backward], bytes);
}

fn swiglu<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("swiglu") {
        return;
    }
    let [t, _, m] = SMALL;
    let (gate, up) = (random::<B, 2>([t, m], dtype), random([t, m], dtype));
    let dy = random::<B, 2>([t, m], dtype);
    let forward = bench
        .clock
        .time(|_| B::swiglu_forward(gate.clone(), up.clone()));
    let backward = bench
        .clock
        .time(|_| B::swiglu_backward(gate.clone(), up.clone(), dy.clone()));
    let bytes = 8 * t * m * dtype.size();
    let name = ("swiglu", format!("{t} x {m}"), dtype);
    row(bench, name, [forward, backward], bytes);
}

/// An f32 parameter in place, from a gradient of `dtype`.
fn adamw<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("AdamW") {
        return;
    }
    let step = AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 1,
    };
    let device = B::Device::default();
    let gradient = random::<B, 1>([LARGEST], dtype);
    let scale = Tensor::<B, 1>::ones([1], &device);
    // Each made for itself, so that it is held here alone.
    let full = || Tensor::<B, 1>::ones([LARGEST], &device);
    let mut state = Some((full(), [full(), full()]));
    let seconds = bench.clock.time(|_| {
        let (parameter, moments) = state.take().expect("put back below");
        let (gradient, scale) = (gradient.clone(), scale.clone());
        state = Some(B::adamw_step(parameter, gradient, moments, scale, step));
    });
    let bytes = (6 * 4 + dtype.size()) * LARGEST;
    let shape = format!("{LARGEST}, gradient {dtype:?}");
    row(bench, ("AdamW", shape, DType::F32), [seconds, 0.0], bytes);
}

fn norms<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    if !bench.wants("squared norms") {
        return;
    }
    let large = random::<B, 1>([LARGEST], dtype);
    let small = random::<B, 1>([2048], dtype);
    for (shape, count, gradient) in [
        (format!("1 of {LARGEST}"), 1, large),
        ("100 of 2048".into(), 100, small),
    ] {
        let elements = count * gradient.dims()[0];
        let gradients = vec![gradient; count];
        let seconds = bench.clock.time(|_| B::squared_norms(gradients.clone()));
        let bytes = elements * dtype.size();
        row(
            bench,
            ("squared norms", shape, dtype),
            [seconds, 0.0],
            bytes,
        );
    }
}
