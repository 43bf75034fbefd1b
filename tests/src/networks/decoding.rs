//! What every network must do in decoding, teacher and student, whatever the backend.

use burn::tensor::{DType, Int, Tensor};
use kernels::KernelBackend;
use model::CausalLm;

use super::*;
use crate::{Goldens, assert_close};

/// After the recorded prompt, the largest logit is the recorded id, token after token.
pub fn assert_greedy<B: KernelBackend>(case: &str, model: &CausalLm<B>, goldens: &Goldens) {
    let device = Default::default();
    let (shape, expected) = goldens.i64("greedy_ids");
    let [b, l] = shape[..] else {
        panic!("{case}: greedy_ids is not [b, l]")
    };
    let prompt = 5;
    let mut all = ids::<B>(goldens, "greedy_ids", &device).narrow(1, 0, prompt);
    let mut state = model.new_state(b, &device);
    let mut logits = model.prefill(all.clone(), &mut state);
    for _ in prompt..l {
        let next: Tensor<B, 1, Int> = logits.argmax(1).reshape([b]);
        all = Tensor::cat(vec![all, next.clone().reshape([b, 1])], 1);
        logits = model.step(next, &mut state);
    }
    let found: Vec<i64> = all.into_data().iter::<i64>().collect();
    assert_eq!(found, expected, "{case}: greedy_ids");
}

/// A sequence that joins a batch which has already stepped is as it is alone, and so are those that were
/// there; in the dtype of the model's parameters, whatever states have become.
fn joins<B: KernelBackend>(
    case: &str,
    model: &CausalLm<B>,
    ids: Tensor<B, 2, Int>,
    tolerance: f64,
) {
    let device = Default::default();
    let row = |i: usize| ids.clone().narrow(0, i, 1);
    let next = |i: usize, at: usize| row(i).narrow(1, at, 1).reshape([1]);
    let read = |i: usize| {
        let mut state = model.new_state(1, &device);
        model.prefill(row(i).narrow(1, 0, 7), &mut state);
        state
    };
    let mut alone = [read(0), read(1)];
    let mut batch = model.new_batch(3, &device);
    batch.put(2, read(0));
    for at in 7..12 {
        if at == 9 {
            batch.put(0, read(1));
        }
        // The one that joined later is two tokens behind.
        let second = if at >= 9 { at - 2 } else { 0 };
        let ids_b = Tensor::cat(vec![next(1, second), next(0, 0), next(0, at)], 0);
        let logits_bv = model.step_batch(ids_b, &mut batch);
        let expected = model.step(next(0, at), &mut alone[0]);
        let name = format!("{case}: the first, at {at}");
        let found = logits_bv.clone().narrow(0, 2, 1);
        assert_close(&name, values(found), values(expected), tolerance);
        if at >= 9 {
            let expected = model.step(next(1, second), &mut alone[1]);
            let name = format!("{case}: the one that joined, at {at}");
            let found = logits_bv.narrow(0, 0, 1);
            assert_close(&name, values(found), values(expected), tolerance);
        }
    }
}

/// Sequences that join a batch are as they are alone, in half precision too where the backend holds it; the logits
/// there are near those in f32.
pub fn assert_joins<B: KernelBackend>(
    case: &str,
    model: &CausalLm<B>,
    goldens: &Goldens,
    tolerance: f64,
) {
    let device = Default::default();
    let ids = ids::<B>(goldens, "input_ids", &device);
    joins(case, model, ids.clone(), tolerance);
    for dtype in [DType::F16, DType::BF16] {
        if !B::holds(&device, dtype) {
            continue;
        }
        let half = model.clone().cast(dtype);
        let case = format!("{case} in {dtype:?}");
        // Both round the same parameters; what differs is the order of sums and the window's dtype.
        joins(&case, &half, ids.clone(), 2e-2);
        let logits = |model: &CausalLm<B>| {
            let mut state = model.new_state(ids.dims()[0], &device);
            model.prefill(ids.clone().narrow(1, 0, 9), &mut state);
            values(model.step(ids.clone().narrow(1, 9, 1).flatten(0, 1), &mut state))
        };
        assert_close(&case, logits(&half), logits(model), 1e-1);
    }
}

/// A model in 8 bits gives nearly the logits that it gave, read at once and token by token, and its
/// token's alike.
pub fn assert_eight_bits<B: KernelBackend>(case: &str, model: &CausalLm<B>, goldens: &Goldens) {
    let device = Default::default();
    let ids = ids::<B>(goldens, "input_ids", &device).narrow(1, 0, 9);
    let int8 = model.clone().to_int8();
    assert!(int8.step_bytes() < model.step_bytes(), "{case}");
    let logits = |model: &CausalLm<B>| {
        let mut state = model.new_state(ids.dims()[0], &device);
        let first = model.prefill(ids.clone().narrow(1, 0, 8), &mut state);
        let next = ids.clone().narrow(1, 8, 1).flatten(0, 1);
        Tensor::cat(vec![first, model.step(next, &mut state)], 0)
    };
    let (found, expected) = (values(logits(&int8)), values(logits(model)));
    let apart = found
        .1
        .iter()
        .zip(&expected.1)
        .map(|(a, b)| (a - b).powi(2));
    let (apart, norm) = (
        apart.sum::<f64>(),
        expected.1.iter().map(|v| v * v).sum::<f64>(),
    );
    let relative = (apart / norm).sqrt();
    assert!(relative < 5e-2, "{case}: {relative}");
    assert!(relative > 0.0, "{case}: nothing was rounded");
}
