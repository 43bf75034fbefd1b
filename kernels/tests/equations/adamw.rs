//! The optimiser's step.

use kernels::{AdamWStep, TrainBackend};

use crate::support::*;

fn adamw<B: TrainBackend>(shape: [usize; 2], scale: f64, step: AdamWStep) -> Vec<Values> {
    let scale = tensor::<B, 1>((vec![1], vec![scale]));
    let parameter = tensor::<B, 2>(random(1, &shape, 1.0));
    let gradient = tensor(random(2, &shape, 1.0));
    let moments = [random(3, &shape, 0.1), random(4, &shape, 0.0)];
    let moments = moments.map(|moment| tensor::<B, 2>(moment));
    let norm = kernels::squared_norm(gradient.clone());
    let flat = gradient.clone().reshape([shape[0] * shape[1]]);
    let norms = kernels::squared_norms(vec![flat.clone().slice(0..1), flat]);
    let (parameter, [m, v]) = kernels::adamw_step(parameter, gradient, moments, scale, step);
    vec![
        values(parameter),
        values(m),
        values(v),
        values(norm),
        values(norms),
    ]
}

#[test]
fn adamw_on_flex_equals_f64() {
    let step = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 3,
    };
    for shape in [[1, 1], [3, 50_000], [7, 11]] {
        for scale in [0.37, f64::NAN, f64::NEG_INFINITY] {
            let fast = adamw::<Fast>(shape, scale, step);
            let exact = adamw::<Exact>(shape, scale, step);
            agree("adamw", fast, exact, F32_TOLERANCE);
        }
    }
}
