//! The SSD scan against the recorded vectors, against the plain recurrence, and at extremes, on the CPU.

use burn::backend::Autodiff;
use kernels::runtime::{Flex, NdArray64};
use kernels::{KernelBackend, TrainBackend, ssd_scan};
use tests::{Values, assert_close};

use crate::scan::*;

/// The files hold f32, so a 64-bit computation differs by their rounding.
const F64_TOLERANCE: f64 = 2e-6;
/// 32-bit arithmetic over sums of up to 131 terms.
const F32_TOLERANCE: f64 = 2e-4;

#[test]
fn scan_equals_the_recording_in_f64() {
    scan_equals_the_recording::<Autodiff<NdArray64>>(F64_TOLERANCE);
}

#[test]
fn scan_equals_the_recording_on_flex() {
    scan_equals_the_recording::<Autodiff<Flex>>(F32_TOLERANCE);
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
            for (s, value) in row.iter_mut().enumerate() {
                *value = decay * *value + x * case.b.1[group + s];
                y[(token * h + k) * p + d] += *value * case.c.1[group + s];
            }
        }
    }
    ((case.x.0.clone(), y), (case.state.0.clone(), state))
}

fn scanned<B: KernelBackend>(case: &Case, chunk: usize) -> (Values, Values) {
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
                let actual = scanned::<B>(&case, chunk);
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

#[test]
fn extreme_decays_stay_finite_in_f64() {
    extreme_decays_stay_finite::<Autodiff<NdArray64>>();
}

#[test]
fn extreme_decays_stay_finite_on_flex() {
    extreme_decays_stay_finite::<Autodiff<Flex>>();
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
    let weights = tensor(tests::random(99, &case.x.0, 1.0));
    let grads = (y * weights).sum().backward();
    [
        values(x.grad(&grads).expect("a gradient")),
        values(a_log.grad(&grads).expect("a gradient")),
        values(b.grad(&grads).expect("a gradient")),
        values(c.grad(&grads).expect("a gradient")),
        values(state.grad(&grads).expect("a gradient")),
    ]
}
