//! Medians over rounds of calls between two synchronisations, after a warm-up, each beside its floor: the
//! bytes that must be moved (each input read once, each output written once) over the speed of a copy.
//! Where operations in matrix products decide, their rate is printed instead. `KERNELS_BENCH=small`
//! divides lengths by 16, for machines without a GPU.

use std::time::Instant;

use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, Distribution, Tensor};
use kernels::conv::Activation;
use kernels::*;

#[cfg(feature = "cuda")]
type B = kernels::backends::Cuda;
#[cfg(not(feature = "cuda"))]
type B = kernels::backends::Wgpu;

const ROUNDS: usize = 7;

/// Seconds a call: the median over rounds of `calls`.
fn time(calls: usize, mut work: impl FnMut()) -> f64 {
    let device = Default::default();
    let sync = || B::sync(&device).expect("the device works");
    work();
    sync();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..calls {
                work();
            }
            sync();
            begun.elapsed().as_secs_f64() / calls as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn random<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let normal = Distribution::Normal(0.0, 1.0);
    Tensor::<B, D>::random(shape, normal, &Default::default()).cast(dtype)
}

fn row(op: &str, shape: &str, dtype: DType, [forward, both]: [Option<f64>; 2], note: String) {
    let ms = |time: Option<f64>| time.map_or("-".into(), |time| format!("{:.4}", 1e3 * time));
    let (forward, both) = (ms(forward), ms(both));
    println!("| {op:12} | {shape:28} | {dtype:?} | {forward:>9} | {both:>9} | {note} |");
}

pub fn table() {
    let small = std::env::var("KERNELS_BENCH").is_ok_and(|value| value == "small");
    let shrink = |length: usize| if small { length / 16 } else { length };
    let calls = if small { 1 } else { 10 };
    let mut dtypes = vec![DType::F32, DType::BF16];
    dtypes.retain(|dtype| B::supports_dtype(&Default::default(), *dtype));

    let elements = shrink(1 << 27);
    let long = random([elements], DType::F32);
    let copy = time(calls, || drop(long.clone().add_scalar(1.0)));
    drop(long);
    let bandwidth = 8.0 * elements as f64 / copy;
    println!("copy {:.0} GB/s\n", 1e-9 * bandwidth);
    println!("| op | shape | dtype | forward ms | forward and backward ms | |");
    println!("|---|---|---|---|---|---|");
    let share = |bytes: usize, time: f64| 100.0 * bytes as f64 / bandwidth / time;

    for &dtype in &dtypes {
        let [b, l, c, w] = [8, shrink(2048), 6144, 4];
        let (x, dy) = (random([b, l, c], dtype), random([b, l, c], dtype));
        let (weight, bias) = (random([c, w], dtype), random([c], dtype));
        for activation in [Activation::Identity, Activation::Silu] {
            let given = || (x.clone(), weight.clone(), Some(bias.clone()));
            let forward = time(calls, || {
                let (x, weight, bias) = given();
                drop(B::causal_conv_forward(x, weight, bias, None, activation));
            });
            let backward = time(calls, || {
                let ((x, weight, bias), dy) = (given(), dy.clone());
                let wanted = [true; 4];
                drop(B::causal_conv_backward(
                    x, weight, bias, None, activation, dy, wanted,
                ));
            });
            let tensor = b * l * c * dtype.size();
            row(
                "convolution",
                &format!("b{b} l{l} c{c} w{w} {activation:?}"),
                dtype,
                [Some(forward), Some(forward + backward)],
                format!(
                    "{:.0}% and {:.0}% of copy bandwidth",
                    share(2 * tensor, forward),
                    share(5 * tensor, forward + backward)
                ),
            );
        }
    }

    for &dtype in &dtypes {
        for length in [2048, 8192] {
            let [b, l, h, n] = [1, shrink(length), 32, 64];
            let student = TransferParts {
                a_log: random([b, l, h], DType::F32),
                b: random([b, l, h, n], dtype) * 0.1,
                c: random([b, l, h, n], dtype) * 0.1,
                d: random([h], dtype),
            };
            let teacher = AttentionParts {
                q: random([b, l, h, n], dtype),
                k: random([b, l, h, n], dtype),
            };
            let forward = time(calls, || {
                drop(B::mixing_distance_forward(student.clone(), teacher.clone()));
            });
            let both = time(calls, || {
                let (student, teacher) = (student.clone(), teacher.clone());
                drop(B::mixing_distance_with_gradients(student, teacher));
            });
            // Seven products of half an l by l matrix's elements with 64 each.
            let operations = 7.0 * (b * h * l * l * n) as f64;
            row(
                "distance",
                &format!("b{b} l{l} h{h} n{n} d{n}"),
                dtype,
                [Some(forward), Some(both)],
                format!("{:.1} TFLOP/s", 1e-12 * operations / both),
            );
        }
    }

    for &dtype in &dtypes {
        for batch in [1, 8, 64, 256] {
            let [b, h, p, n, w] = [if small { batch.min(8) } else { batch }, 32, 64, 64, 4];
            let c = h * (p + 2 * n);
            let parameters = StepParameters {
                taps: random([c, w], dtype),
                bias: Some(random([c], dtype)),
                activation: Activation::Identity,
                d: random([h], dtype),
                z_bias: Some(random([h * p], dtype)),
            };
            let projected = random([b, c + h * p + h], dtype);
            // More states than the cache holds, and tokens that nothing else holds.
            let states = if b > 64 { 2 } else { 8 };
            let mut states: Vec<_> = (0..states)
                .map(|_| {
                    Some(StepState {
                        conv: random([b, c, w], dtype),
                        ssm: random([b, h, p, n], DType::F32),
                    })
                })
                .collect();
            let mut turn = 0;
            let calls = 4 * calls;
            let mut tokens: Vec<_> = (0..calls * ROUNDS + 1)
                .map(|_| projected.clone().mul_scalar(1.0))
                .collect();
            let step = time(calls, || {
                turn = (turn + 1) % states.len();
                let state = states[turn].take().expect("put back below");
                let token = tokens.pop().expect("one a call");
                let (_, after) = B::recurrent_step(token, parameters.clone(), state);
                states[turn] = Some(after);
            });
            let projections = b * (c + 2 * h * p + h);
            let bytes = 8 * b * h * p * n + (2 * b * c * w + projections) * dtype.size();
            row(
                "step",
                &format!("b{b} h{h} p{p} n{n} w{w}"),
                dtype,
                [Some(step), None],
                format!("{:.0}% of copy bandwidth", share(bytes, step)),
            );
        }
    }
}
