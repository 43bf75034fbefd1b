//! What the scan must do, whatever the backend.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::{TrainBackend, ssd_scan};
use tests::{Goldens, Values, assert_close, random};

pub fn tensor<B: Backend, const D: usize>((shape, values): Values) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Values {
    let shape = tensor.dims().to_vec();
    (shape, tensor.into_data().iter::<f64>().collect())
}

/// Inputs of a scan.
pub struct Case {
    pub x: Values,
    pub a_log: Values,
    pub b: Values,
    pub c: Values,
    pub state: Values,
}

pub fn scan_equals_the_recording<B: TrainBackend>(tolerance: f64) {
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

pub fn random_case([b, l, h, p, g, n]: [usize; 6], a_log_scale: f64, seed: u64) -> Case {
    let random = |k: u64, shape: &[usize], scale| random(seed * 8 + k, shape, scale);
    Case {
        x: random(1, &[b, l, h, p], 1.0),
        a_log: random(2, &[b, l, h], a_log_scale),
        b: random(3, &[b, l, g, n], 1.0),
        c: random(4, &[b, l, g, n], 1.0),
        state: random(5, &[b, h, p, n], 1.0),
    }
}

pub fn extreme_decays_stay_finite<B: TrainBackend>() {
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
