//! Times of every op at the sizes of the `tiny` preset: `cargo bench -p kernels --features flex`.
//!
//! The best of several runs each, beside what the machine could do at most: bytes (each input read
//! once, each output written once) over the speed of a copy, or operations over the speed of a large
//! matrix product, whichever is longer.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor};
use kernels::backends::Flex;
use kernels::*;

type B = Flex;
type A = Autodiff<Flex>;

const REPEATS: usize = 30;

fn best<T>(mut work: impl FnMut() -> T) -> f64 {
    let time = |_| {
        let begun = Instant::now();
        std::hint::black_box(work());
        begun.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn row(name: &str, seconds: f64, floor: f64) {
    let (ms, floor) = (1e3 * seconds, 1e3 * floor);
    println!(
        "| {name:42} | {ms:8.3} | {floor:8.3} | {:5.1} |",
        ms / floor
    );
}

fn main() {
    // b sequences of l tokens; width d, MLP m, vocabulary v; h heads of p, state n.
    let (b, l, d, m, v, h, p, n) = (4, 256, 192, 768, 4096, 3, 64, 64);
    let t = b * l;

    let large = random([2048, 2048]);
    let product = best(|| large.clone().matmul(large.clone()));
    let flops = 2.0 * 2048f64.powi(3) / product;
    let long = random([1 << 25]);
    let bytes = 8.0 * (1 << 25) as f64 / best(|| long.clone().add_scalar(1.0));
    println!(
        "matrix product {:.0} GFLOP/s, copy {:.1} GB/s\n",
        flops * 1e-9,
        bytes * 1e-9
    );
    println!(
        "| {:42} | {:>8} | {:>8} | {:>5} |",
        "op", "ms", "floor ms", "times"
    );
    println!("|{:-<44}|{:->10}|{:->10}|{:->7}|", "", ":", ":", ":");
    let by_bytes = |floats: usize| 4.0 * floats as f64 / bytes;
    let by_flops = |operations: usize| operations as f64 / flops;

    for (i, o) in [(d, d), (d, m), (m, d), (d, v)] {
        let (x, w, bias, dy) = (random([t, i]), random([o, i]), random([o]), random([t, o]));
        let floor = by_flops(2 * t * i * o);
        let forward = || linear(x.clone(), w.clone(), Some(bias.clone()));
        row(&format!("linear {t} x {i} x {o}"), best(forward), floor);
        let backward = || B::linear_backward(x.clone(), w.clone(), dy.clone(), [true; 3]);
        row(
            &format!("linear {t} x {i} x {o}, backward"),
            best(backward),
            2.0 * floor,
        );
    }

    let (x, dy, gamma) = (random([t, d]), random([t, d]), random([d]));
    let forward = || layer_norm(x.clone(), gamma.clone(), gamma.clone(), 1e-5);
    row("layer norm", best(forward), by_bytes(2 * t * d));
    let backward = || B::layer_norm_backward(x.clone(), gamma.clone(), dy.clone(), 1e-5, [true; 3]);
    row("layer norm, backward", best(backward), by_bytes(3 * t * d));

    let (x, dy) = (random([t, m]), random([t, m]));
    row("gelu", best(|| gelu_new(x.clone())), by_bytes(2 * t * m));
    let backward = || B::gelu_new_backward(x.clone(), dy.clone());
    row("gelu, backward", best(backward), by_bytes(3 * t * m));

    let identity = conv::Activation::Identity;
    let (x, dy, w) = (random([b, l, d]), random([b, l, d]), random([d, 4]));
    let forward = || causal_conv(x.clone(), w.clone(), Some(gamma.clone()), None, identity);
    row("convolution", best(forward), by_bytes(2 * t * d));
    let backward = || {
        let (x, w, dy) = (x.clone(), w.clone(), dy.clone());
        B::causal_conv_backward(x, w, None, None, identity, dy, [true; 4])
    };
    row("convolution, backward", best(backward), by_bytes(3 * t * d));

    let (x, a_log) = (random([b, l, h, p]), random([b, l, h]));
    let (bs, cs, dy) = (
        random([b, l, h, n]),
        random([b, l, h, n]),
        random([b, l, h, p]),
    );
    for chunk in [32, 64, 128] {
        let products = t * h * (chunk * n + chunk * p + 2 * n * p) * 2;
        let forward = || {
            ssd_scan(
                x.clone(),
                a_log.clone(),
                bs.clone(),
                cs.clone(),
                None,
                chunk,
            )
        };
        row(
            &format!("scan, chunk {chunk}"),
            best(forward),
            by_flops(products),
        );
        let backward = || {
            let (x, a_log, bs, cs) = (x.clone(), a_log.clone(), bs.clone(), cs.clone());
            B::ssd_scan_backward(x, a_log, bs, cs, None, dy.clone(), chunk)
        };
        row(
            &format!("scan, chunk {chunk}, backward"),
            best(backward),
            by_flops(5 * products / 2),
        );
    }

    let (z, skip) = (random([b, l, d]), random([h]));
    let forward = || {
        gated_skip(
            x.clone(),
            dy.clone(),
            skip.clone(),
            z.clone(),
            Some(gamma.clone()),
        )
    };
    row("skip and gate", best(forward), by_bytes(4 * t * d));
    let backward = || {
        let (y, x, z, bias) = (x.clone(), dy.clone(), z.clone(), Some(gamma.clone()));
        B::gated_skip_backward(y, x, skip.clone(), z.clone(), bias, z)
    };
    row(
        "skip and gate, backward",
        best(backward),
        by_bytes(7 * t * d),
    );

    let products = 2 * b * h * l * l * p;
    let forward = || attention(x.clone(), bs.clone(), cs.clone());
    row("attention", best(forward), by_flops(products));
    let angles = random([l, 16]);
    let forward = || rotary(x.clone(), angles.clone(), angles.clone());
    row("rotary", best(forward), by_bytes(2 * t * d));
    let student = TransferParts {
        a_log,
        b: bs.clone(),
        c: cs.clone(),
        d: skip,
    };
    let teacher = AttentionParts {
        q: x.clone(),
        k: dy.clone(),
    };
    let both = || B::mixing_distance_with_gradients(student.clone(), teacher.clone());
    row(
        "stage-1 distance with gradients",
        best(both),
        by_flops(2 * products),
    );

    let (student, teacher) = (random([t, v]), random([t, v]));
    let weights = DistillationWeights::default();
    let loss = || distillation_loss(student.clone(), teacher.clone(), None, weights);
    row("distillation loss", best(loss), by_bytes(2 * t * v));
    let both = || {
        let student = Tensor::<A, 2>::from_inner(student.clone()).require_grad();
        let teacher = Tensor::from_inner(teacher.clone());
        distillation_loss(student, teacher, None, weights).backward()
    };
    row(
        "distillation loss and gradient",
        best(both),
        by_bytes(3 * t * v),
    );

    let size = 1 << 22;
    let step = AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        gradient_scale: 1.0,
        time: 1,
    };
    let gradient = random([size]);
    let mut state = Some((random([size]), [random([size]), random([size])]));
    let update = || {
        let (parameter, moments) = state.take().expect("put back below");
        state = Some(adamw_step(parameter, gradient.clone(), moments, step));
    };
    row("AdamW, 4M parameters", best(update), by_bytes(7 * size));
    row(
        "squared norm, 4M",
        best(|| squared_norm(gradient.clone())),
        by_bytes(size),
    );
}
