//! The SSD scan against the recorded vectors, against the plain recurrence, and at extremes.

#[cfg(feature = "wgpu")]
mod support;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::backends::{Flex, NdArray64};
use kernels::{KernelBackend, TrainBackend, ssd_scan};
#[cfg(feature = "wgpu")]
use support::{Wgpu, on_wgpu};
use tests::{Goldens, assert_close};

/// The files hold f32, so a 64-bit computation differs by their rounding.
const F64_TOLERANCE: f64 = 2e-6;
/// 32-bit arithmetic over sums of up to 131 terms.
const F32_TOLERANCE: f64 = 2e-4;

type Values = (Vec<usize>, Vec<f64>);

fn tensor<B: Backend, const D: usize>((shape, values): Values) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Values {
    let shape = tensor.dims().to_vec();
    (shape, tensor.into_data().iter::<f64>().collect())
}

fn scan_equals_the_recording<B: TrainBackend>(tolerance: f64) {
    for path in tests::files("ssd") {
        let golden = Goldens::open_path(&path);
        let l = golden.f64("x").0[1];
        for chunk in [1, 7, 16, 64, l, l + 3] {
            let name = |key: &str| format!("{} chunk {chunk} {key}", tests::name_of(&path));
            let x = tensor::<B, 4>(golden.f64("x")).require_grad();
            let a_log = tensor::<B, 3>(golden.f64("a_log")).require_grad();
            let b = tensor::<B, 4>(golden.f64("b")).require_grad();
            let c = tensor::<B, 4>(golden.f64("c")).require_grad();
            let initial = golden.has("initial_state");
            let initial = initial.then(|| tensor::<B, 4>(golden.f64("initial_state")));
            let initial = initial.map(Tensor::require_grad);

            let (y, state) = ssd_scan(
                x.clone(),
                a_log.clone(),
                b.clone(),
                c.clone(),
                initial.clone(),
                chunk,
            );
            assert_close(&name("y"), values(y.clone()), golden.f64("y"), tolerance);
            let expected = golden.f64("final_state");
            assert_close(&name("final_state"), values(state), expected, tolerance);

            let grads = (y * tensor(golden.f64("grad_y"))).sum().backward();
            let check = |key: &str, actual: Option<Values>| {
                let actual = actual.unwrap_or_else(|| panic!("{}: no gradient", name(key)));
                let expected = golden.f64(&format!("grad_y_only.{key}"));
                assert_close(&name(key), actual, expected, tolerance);
            };
            check("x", x.grad(&grads).map(values));
            check("a_log", a_log.grad(&grads).map(values));
            check("b", b.grad(&grads).map(values));
            check("c", c.grad(&grads).map(values));
            if let Some(initial) = initial {
                check("initial_state", initial.grad(&grads).map(values));
            }
        }
    }
}

#[test]
fn scan_equals_the_recording_in_f64() {
    scan_equals_the_recording::<Autodiff<NdArray64>>(F64_TOLERANCE);
}

#[test]
fn scan_equals_the_recording_on_flex() {
    scan_equals_the_recording::<Autodiff<Flex>>(F32_TOLERANCE);
}

#[cfg(feature = "wgpu")]
#[test]
fn scan_equals_the_recording_on_wgpu() {
    on_wgpu(|| scan_equals_the_recording::<Autodiff<Wgpu>>(F32_TOLERANCE));
}

/// A fixed, rough sequence: the tests' own source of numbers in -1 to 1.
fn numbers(seed: u64, count: usize, scale: f64) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| scale * next()).collect()
}

struct Case {
    x: Values,
    a_log: Values,
    b: Values,
    c: Values,
    state: Values,
}

fn random_case([b, l, h, p, g, n]: [usize; 6], a_log_scale: f64, seed: u64) -> Case {
    let random = |k: u64, shape: Vec<usize>, scale| {
        let count = shape.iter().product();
        (shape, numbers(seed * 8 + k, count, scale))
    };
    Case {
        x: random(1, vec![b, l, h, p], 1.0),
        a_log: random(2, vec![b, l, h], a_log_scale),
        b: random(3, vec![b, l, g, n], 1.0),
        c: random(4, vec![b, l, g, n], 1.0),
        state: random(5, vec![b, h, p, n], 1.0),
    }
}

/// `h_t = a_t h_(t-1) + x_t B_t^T`, `y_t = h_t C_t`, one number at a time.
fn recurrence(case: &Case) -> (Values, Values) {
    let [b, l, h, p] = case.x.0[..] else { panic!() };
    let [_, _, g, n] = case.b.0[..] else { panic!() };
    let mut y = vec![0.0; b * l * h * p];
    let mut state = case.state.1.clone();
    for (i, t, k) in (0..b).flat_map(|i| (0..l).flat_map(move |t| (0..h).map(move |k| (i, t, k)))) {
        let token = i * l + t;
        let decay = 1.0 / (1.0 + case.a_log.1[token * h + k].exp());
        let group = (token * g + k / (h / g)) * n;
        for d in 0..p {
            let x = case.x.1[(token * h + k) * p + d];
            let row = &mut state[((i * h + k) * p + d) * n..][..n];
            for s in 0..n {
                row[s] = decay * row[s] + x * case.b.1[group + s];
                y[(token * h + k) * p + d] += row[s] * case.c.1[group + s];
            }
        }
    }
    ((case.x.0.clone(), y), (case.state.0.clone(), state))
}

fn scan<B: KernelBackend>(case: &Case, chunk: usize) -> (Values, Values) {
    let (y, state) = ssd_scan::<B>(
        tensor(case.x.clone()),
        tensor(case.a_log.clone()),
        tensor(case.b.clone()),
        tensor(case.c.clone()),
        Some(tensor(case.state.clone())),
        chunk,
    );
    (values(y), values(state))
}

fn chunked_equals_the_recurrence<B: KernelBackend>(tolerance: f64) {
    let shapes = [
        [1, 1, 1, 1, 1, 1],
        [2, 65, 3, 5, 1, 7],
        [1, 200, 4, 16, 2, 9],
        [3, 33, 2, 64, 2, 64],
    ];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for scale in [1.0, 8.0, 40.0] {
            let case = random_case(shape, scale, seed as u64 + 1);
            let (y, state) = recurrence(&case);
            for chunk in [1, 5, 8, 64, 256] {
                let name = |what: &str| format!("{shape:?} a_log {scale} chunk {chunk} {what}");
                let actual = scan::<B>(&case, chunk);
                assert_close(&name("y"), actual.0, y.clone(), tolerance);
                assert_close(&name("state"), actual.1, state.clone(), tolerance);
            }
        }
    }
}

#[test]
fn chunked_equals_the_recurrence_in_f64() {
    chunked_equals_the_recurrence::<NdArray64>(1e-12);
}

#[test]
fn chunked_equals_the_recurrence_on_flex() {
    chunked_equals_the_recurrence::<Flex>(1e-5);
}

fn extreme_decays_stay_finite<B: TrainBackend>() {
    let shape = [1, 150, 2, 4, 2, 4];
    for a_log in [-40.0, 40.0, -700.0, 700.0] {
        let mut case = random_case(shape, 1.0, 9);
        case.a_log.1.fill(a_log);
        let a_log = tensor::<B, 3>(case.a_log.clone()).require_grad();
        let x = tensor::<B, 4>(case.x.clone()).require_grad();
        let (b, c) = (tensor(case.b.clone()), tensor(case.c.clone()));
        let (y, state) = ssd_scan(x.clone(), a_log.clone(), b, c, None, 64);
        let grads = y.clone().sum().backward();
        let all = [
            values(y).1,
            values(state).1,
            values(x.grad(&grads).expect("a gradient")).1,
            values(a_log.grad(&grads).expect("a gradient")).1,
        ];
        assert!(all.iter().flatten().all(|v| v.is_finite()));
    }
}

#[test]
fn extreme_decays_stay_finite_in_f64() {
    extreme_decays_stay_finite::<Autodiff<NdArray64>>();
}

#[test]
fn extreme_decays_stay_finite_on_flex() {
    extreme_decays_stay_finite::<Autodiff<Flex>>();
}

#[cfg(feature = "wgpu")]
#[test]
fn extreme_decays_stay_finite_on_wgpu() {
    on_wgpu(extreme_decays_stay_finite::<Autodiff<Wgpu>>);
}

#[test]
fn backward_on_flex_equals_f64() {
    for (seed, shape) in [
        [2, 130, 3, 8, 3, 16],
        [1, 77, 4, 12, 2, 5],
        [4, 64, 2, 64, 2, 64],
    ]
    .into_iter()
    .enumerate()
    {
        for scale in [2.0, 20.0] {
            let case = random_case(shape, scale, seed as u64 + 20);
            let exact = gradients::<Autodiff<NdArray64>>(&case, 32);
            let fast = gradients::<Autodiff<Flex>>(&case, 32);
            for (k, (fast, exact)) in fast.into_iter().zip(exact).enumerate() {
                assert_close(
                    &format!("{shape:?} scale {scale} gradient {k}"),
                    fast,
                    exact,
                    1e-5,
                );
            }
        }
    }
}

fn gradients<B: TrainBackend>(case: &Case, chunk: usize) -> [Values; 5] {
    let x = tensor::<B, 4>(case.x.clone()).require_grad();
    let a_log = tensor::<B, 3>(case.a_log.clone()).require_grad();
    let b = tensor::<B, 4>(case.b.clone()).require_grad();
    let c = tensor::<B, 4>(case.c.clone()).require_grad();
    let state = tensor::<B, 4>(case.state.clone()).require_grad();
    let inputs = (
        x.clone(),
        a_log.clone(),
        b.clone(),
        c.clone(),
        Some(state.clone()),
    );
    let (y, _) = ssd_scan(inputs.0, inputs.1, inputs.2, inputs.3, inputs.4, chunk);
    let weights = tensor((case.x.0.clone(), numbers(99, case.x.1.len(), 1.0)));
    let grads = (y * weights).sum().backward();
    [
        values(x.grad(&grads).expect("a gradient")),
        values(a_log.grad(&grads).expect("a gradient")),
        values(b.grad(&grads).expect("a gradient")),
        values(c.grad(&grads).expect("a gradient")),
        values(state.grad(&grads).expect("a gradient")),
    ]
}
