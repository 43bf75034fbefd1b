//! Attention.

use kernels::TrainBackend;
use kernels::dense::attention::reference;
use kernels::runtime::{Flex, NdArray64};
use tests::assert_close;

use crate::support::*;

fn attention<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(kernels::attention(q, k, v))
}

fn attention_definition<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(reference::forward(q, k, v))
}

#[test]
fn attention_is_right() {
    for [b, l, t, h, g, p] in [
        [1, 1, 1, 1, 1, 2],
        [2, 37, 37, 4, 2, 12],
        [1, 150, 150, 3, 3, 16],
        [2, 5, 80, 4, 1, 8],
        [2, 1, 70, 2, 2, 64],
    ] {
        let (q, k) = (random(1, &[b, l, h, p], 3.0), random(2, &[b, t, g, p], 3.0));
        let v = random(3, &[b, t, g, p], 1.0);
        check!(
            format!("attention {:?}", [b, l, t, h, g, p]),
            attention,
            attention_definition,
            &q,
            &k,
            &v
        );

        let exact = kernels::attention_matrix::<NdArray64>(tensor(q.clone()), tensor(k.clone()));
        let fast = kernels::attention_matrix::<Flex>(tensor(q), tensor(k));
        assert_close(
            "attention matrix",
            values(fast),
            values(exact),
            F32_TOLERANCE,
        );
    }
}

/// Softmax attention written out, one number at a time.
#[test]
fn attention_equals_its_equation() {
    let [l, h, g, p] = [5, 4, 2, 3];
    let (q, k) = (random(1, &[1, l, h, p], 1.0), random(2, &[1, l, g, p], 1.0));
    let matrix = kernels::attention_matrix::<NdArray64>(tensor(q.clone()), tensor(k.clone()));
    let mut expected = vec![];
    for (head, i) in (0..h).flat_map(|head| (0..l).map(move |i| (head, i))) {
        let score = |j: usize| {
            let dot = |d: usize| q.1[(i * h + head) * p + d] * k.1[(j * g + head / 2) * p + d];
            (0..p).map(dot).sum::<f64>() / (p as f64).sqrt()
        };
        let total: f64 = (0..=i).map(|j| score(j).exp()).sum();
        expected.extend((0..l).map(|j| if j <= i { score(j).exp() / total } else { 0.0 }));
    }
    assert_close(
        "matrix",
        values(matrix),
        (vec![1, h, l, l], expected),
        1e-14,
    );
}
