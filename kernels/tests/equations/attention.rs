//! Attention.

use burn::tensor::Tensor;
use kernels::decode::attention_step::{Cache, NewToken};
use kernels::dense::attention::reference;
use kernels::runtime::{Flex, NdArray64};
use kernels::{
    KernelBackend, TrainBackend, Window, attention_matrix_within, attention_step_within,
    attention_within,
};
use tests::{Goldens, assert_close};

use crate::support::*;

fn attention<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(kernels::attention(q, k, v))
}

fn attention_definition<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(reference::forward(q, k, v, None::<Window>))
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

fn windowed<B: TrainBackend>(q: &Values, k: &Values, v: &Values, window: Window) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(attention_within(q, k, v, Some(window)))
}

/// The whole matrix, times the values.
fn windowed_definition<B: TrainBackend>(
    q: &Values,
    k: &Values,
    v: &Values,
    window: Window,
) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input::<4>(v));
    let ([_, _, h, _], [b, t, g, p]) = (q.dims(), k.dims());
    let matrix = reference::matrix(q, k, Some(window));
    let v: Tensor<B, 4> = v
        .reshape([b, t, g, 1, p])
        .expand([b, t, g, h / g, p])
        .reshape([b, t, h, p]);
    trace.finish(matrix.matmul(v.swap_dims(1, 2)).swap_dims(1, 2))
}

const WINDOWS: [(usize, usize); 6] = [(1, 0), (1, 3), (8, 2), (70, 0), (64, 4), (200, 1)];

/// Attention in blocks equals the whole matrix, forward and backward, for windows shorter and longer than a block, and
/// for queries of whole sequences and of their last tokens.
#[test]
fn windowed_attention_is_right() {
    for [b, l, t, h, g, p] in [
        [2, 31, 31, 4, 2, 12],
        [1, 200, 200, 2, 1, 8],
        [2, 67, 150, 4, 2, 8],
        [1, 1, 90, 2, 2, 16],
    ] {
        let (q, k) = (random(1, &[b, l, h, p], 3.0), random(2, &[b, t, g, p], 3.0));
        let v = random(3, &[b, t, g, p], 1.0);
        for (size, sinks) in WINDOWS {
            let window = Window {
                window: size,
                sinks,
            };
            let name = format!("attention {:?} within {window:?}", [b, l, t, h, g, p]);
            check!(name, windowed, windowed_definition, &q, &k, &v, window);
        }
    }
}

/// The rule written out, one number at a time.
#[test]
fn windowed_attention_equals_its_equation() {
    let [l, t, p] = [9, 11, 3];
    let (q, k) = (random(1, &[1, l, 1, p], 1.0), random(2, &[1, t, 1, p], 1.0));
    for (size, sinks) in [(1, 0), (1, 2), (4, 0), (3, 2), (9, 2), (40, 0)] {
        let mut expected = vec![];
        for i in 0..l {
            let place = t - l + i;
            let weight = |j: usize| {
                let dot: f64 = (0..p).map(|d| q.1[i * p + d] * k.1[j * p + d]).sum();
                let is_seen = j <= place && (place - j < size || j < sinks);
                if is_seen {
                    (dot / (p as f64).sqrt()).exp()
                } else {
                    0.0
                }
            };
            let total: f64 = (0..t).map(weight).sum();
            expected.extend((0..t).map(|j| weight(j) / total));
        }
        let window = Window {
            window: size,
            sinks,
        };
        let matrix = attention_matrix_within::<NdArray64>(
            tensor(q.clone()),
            tensor(k.clone()),
            Some(window),
        );
        let name = format!("matrix within {window:?}");
        let expected = (vec![1, 1, l, t], expected);
        assert_close(&name, values(matrix), expected, 1e-14);
    }
}

/// Step by step, with a cache that does not grow, as in the whole sequence.
fn windowed_steps<B: KernelBackend>(tolerance: f64) {
    let [b, l, h, g, p] = [2, 20, 4, 2, 6];
    let q = random(1, &[b, l, h * p], 2.0);
    let k = random(2, &[b, l, g * p], 2.0);
    let v = random(3, &[b, l, g * p], 1.0);
    let of = |x: &Values| tensor::<B, 3>(x.clone());
    for (size, sinks) in [(1, 0), (1, 2), (2, 0), (5, 3), (17, 2), (18, 2), (30, 0)] {
        let window = Some(Window {
            window: size,
            sinks,
        });
        let whole = attention_within::<B>(
            of(&q).reshape([b, l, h, p]),
            of(&k).reshape([b, l, g, p]),
            of(&v).reshape([b, l, g, p]),
            window,
        );
        let mut cache: Option<Cache<B>> = None;
        let mut outputs = vec![];
        for i in 0..l {
            let at = |x: &Values, width: usize| of(x).narrow(1, i, 1).reshape([b, width]);
            let device = Default::default();
            let token = NewToken {
                q: at(&q, h * p),
                k: at(&k, g * p),
                v: at(&v, g * p),
                cos: Tensor::ones([1, 1], &device),
                sin: Tensor::zeros([1, 1], &device),
                angle: 0,
            };
            let (y, after) = attention_step_within(token, cache, h, window);
            outputs.push(y.reshape([b, 1, h * p]));
            assert_eq!(after.filled().0.dims()[1], (i + 1).min(size + sinks));
            cache = Some(after);
        }
        let steps: Tensor<B, 3> = Tensor::cat(outputs, 1);
        let name = format!("steps within {size} and {sinks}");
        let whole = values(whole.reshape([b, l, h * p]));
        assert_close(&name, values(steps), whole, tolerance);
    }
}

#[test]
fn windowed_steps_are_the_whole() {
    windowed_steps::<NdArray64>(1e-13);
    windowed_steps::<Flex>(F32_TOLERANCE);
}

/// The recorded layer: projections, rotary positions, attention within 8 tokens and 2 sinks, and all gradients.
fn recorded<B: TrainBackend>(tolerance: f64) {
    let goldens = Goldens::open("sliding-window/expected");
    let (h, g, p, theta) = (4, 2, 12, 10000_f64);
    let window = Some(Window {
        window: 8,
        sinks: 2,
    });
    let names = [
        "hidden_states",
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "o_proj.weight",
    ];
    let x = tensor::<B, 3>(goldens.f64(names[0])).require_grad();
    let weight = |name: &str| tensor::<B, 2>(goldens.f64(name)).require_grad();
    let [wq, wk, wv, wo] = [1, 2, 3, 4].map(|i| weight(names[i]));
    let [b, l, _] = x.dims();
    let angle = |i: usize| (i / 6) as f64 * theta.powf(-2.0 * (i % 6) as f64 / p as f64);
    let of_angles = |f: fn(f64) -> f64| {
        let of_all = (0..l * 6).map(|i| f(angle(i))).collect();
        tensor::<B, 2>((vec![l, 6], of_all))
    };
    let (cos, sin) = (of_angles(f64::cos), of_angles(f64::sin));
    let project = |w: &Tensor<B, 2>, heads: usize| {
        kernels::linear(x.clone(), w.clone(), None).reshape([b, l, heads, p])
    };
    let rotate = |x: Tensor<B, 4>| kernels::dense::rotary::rotary(x, cos.clone(), sin.clone());
    let (q, k, v) = (
        rotate(project(&wq, h)),
        rotate(project(&wk, g)),
        project(&wv, g),
    );
    let matrix = attention_matrix_within(q.clone(), k.clone(), window);
    let context = attention_within(q, k, v, window).reshape([b, l, h * p]);
    let output = kernels::linear(context.clone(), wo.clone(), None);
    let dy = tensor::<B, 3>(goldens.f64("grad_output"));
    let grads = (output.clone() * dy).sum().backward();
    let compare = |key: &str, found: Values| {
        assert_close(key, found, goldens.f64(key), tolerance);
    };
    compare("attentions", values(matrix));
    compare("context", values(context));
    compare("output", values(output));
    compare("grad.hidden_states", values(x.grad(&grads).expect("one")));
    for (weight, name) in [wq, wk, wv, wo].into_iter().zip(&names[1..]) {
        let gradient = weight.grad(&grads).expect("a gradient");
        compare(&format!("grad.{name}"), values(gradient));
    }
}

#[test]
fn windowed_attention_equals_the_recording() {
    recorded::<Exact>(2e-6);
    recorded::<Fast>(2e-5);
}
