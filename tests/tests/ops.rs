//! Every op but the scan (which has its own file): the analytic backward against Burn's autodiff of
//! the reference in f64, and the fast CPU path against the reference.

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::backends::{Flex, NdArray64};
use kernels::conv::Activation;
use kernels::matvec::Weight;
use kernels::{
    AdamWStep, AttentionParts, DistillationWeights, KernelBackend, StepParameters, StepState,
    TrainBackend, TransferParts,
};
use tests::assert_close;

type Values = (Vec<usize>, Vec<f64>);
type Exact = Autodiff<NdArray64>;
type Fast = Autodiff<Flex>;

/// Two evaluation orders of the same sums in 64 bits.
const F64_TOLERANCE: f64 = 1e-10;
/// 32-bit sums of a few hundred terms.
const F32_TOLERANCE: f64 = 1e-5;

fn tensor<B: Backend, const D: usize>((shape, values): Values) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Values {
    let shape = tensor.dims().to_vec();
    (shape, tensor.into_data().iter::<f64>().collect())
}

/// Rough numbers in `-scale` to `scale`.
fn random(seed: u64, shape: &[usize], scale: f64) -> Values {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let count = shape.iter().product();
    (shape.to_vec(), (0..count).map(|_| scale * next()).collect())
}

/// How to read one input's gradient.
type Gradient<B> = Box<dyn Fn(&<B as AutodiffBackend>::Gradients) -> Values>;

/// Collects an op's output and its gradients under the weights `dy`.
struct Trace<B: TrainBackend> {
    inputs: Vec<Gradient<B>>,
}

impl<B: TrainBackend> Trace<B> {
    fn new() -> Self {
        Self { inputs: vec![] }
    }

    /// A differentiated input of the op.
    fn input<const D: usize>(&mut self, of: &Values) -> Tensor<B, D> {
        let input = tensor::<B, D>(of.clone()).require_grad();
        let kept = input.clone();
        self.inputs.push(Box::new(move |grads| {
            values(kept.grad(grads).expect("a gradient"))
        }));
        input
    }

    fn finish<const D: usize>(self, output: Tensor<B, D>) -> Vec<Values> {
        let dy = tensor(random(77, &output.dims(), 1.0));
        let y = values(output.clone());
        let grads = (output * dy).sum().backward();
        let gradients = self.inputs.iter().map(|gradient| gradient(&grads));
        std::iter::once(y).chain(gradients).collect()
    }
}

fn agree(name: &str, actual: Vec<Values>, expected: Vec<Values>, tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (k, (actual, expected)) in actual.into_iter().zip(expected).enumerate() {
        assert_close(&format!("{name}, tensor {k}"), actual, expected, tolerance);
    }
}

/// Compares `$op` on both backends, and with `$definition` left to Burn's autodiff.
macro_rules! check {
    ($name:expr, $op:ident, $definition:ident, $($argument:expr),*) => {
        let exact = $op::<Exact>($($argument),*);
        agree(&format!("{} in f64", $name), exact.clone(), $definition::<Exact>($($argument),*), F64_TOLERANCE);
        agree(&format!("{} on flex", $name), $op::<Fast>($($argument),*), exact, F32_TOLERANCE);
    };
}

fn linear<B: TrainBackend>(x: &Values, w: &Values, bias: Option<&Values>) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, w) = (trace.input::<3>(x), trace.input(w));
    let bias = bias.map(|bias| trace.input(bias));
    trace.finish(kernels::linear(x, w, bias))
}

fn linear_definition<B: TrainBackend>(
    x: &Values,
    w: &Values,
    bias: Option<&Values>,
) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, w) = (trace.input::<3>(x), trace.input::<2>(w));
    let bias = bias.map(|bias| trace.input(bias));
    let ([b, l, i], [o, _]) = (x.dims(), w.dims());
    let y = kernels::linear::reference::forward(x.reshape([b * l, i]), w, bias);
    trace.finish(y.reshape([b, l, o]))
}

#[test]
fn linear_is_right() {
    for [b, l, i, o] in [
        [2, 3, 5, 7],
        [1, 1, 64, 3],
        [3, 100, 48, 130],
        [4, 128, 96, 96],
    ] {
        let (x, w) = (random(1, &[b, l, i], 1.0), random(2, &[o, i], 1.0));
        let bias = random(3, &[o], 1.0);
        check!(
            "linear with bias",
            linear,
            linear_definition,
            &x,
            &w,
            Some(&bias)
        );
        check!("linear", linear, linear_definition, &x, &w, None);
    }
}

fn norm<B: TrainBackend>(x: &Values, gamma: &Values, beta: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma, beta) = (trace.input::<2>(x), trace.input(gamma), trace.input(beta));
    trace.finish(kernels::layer_norm(x, gamma, beta, 1e-5))
}

fn norm_definition<B: TrainBackend>(x: &Values, gamma: &Values, beta: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma, beta) = (trace.input(x), trace.input(gamma), trace.input(beta));
    trace.finish(kernels::norm::reference::forward(x, gamma, beta, 1e-5))
}

#[test]
fn layer_norm_is_right() {
    for [t, d] in [[1, 3], [7, 48], [300, 192], [2, 129]] {
        let (gamma, beta) = (random(2, &[d], 1.0), random(3, &[d], 1.0));
        check!(
            "layer norm",
            norm,
            norm_definition,
            &random(1, &[t, d], 3.0),
            &gamma,
            &beta
        );
    }
}

fn gelu<B: TrainBackend>(x: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input::<2>(x);
    trace.finish(kernels::gelu_new(x))
}

fn gelu_definition<B: TrainBackend>(x: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    trace.finish(kernels::gelu::reference::forward(x))
}

#[test]
fn gelu_is_right() {
    for scale in [0.1, 3.0, 30.0] {
        check!("gelu", gelu, gelu_definition, &random(4, &[33, 50], scale));
    }
}

struct Gate {
    y: Values,
    x: Values,
    d: Values,
    z: Values,
    bias: Option<Values>,
}

fn gate<B: TrainBackend>(g: &Gate) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (y, x, d, z) = (
        trace.input(&g.y),
        trace.input(&g.x),
        trace.input(&g.d),
        trace.input(&g.z),
    );
    let bias = g.bias.as_ref().map(|bias| trace.input(bias));
    trace.finish(kernels::gated_skip(y, x, d, z, bias))
}

fn gate_definition<B: TrainBackend>(g: &Gate) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (y, x, d, z) = (
        trace.input(&g.y),
        trace.input(&g.x),
        trace.input(&g.d),
        trace.input(&g.z),
    );
    let bias = g.bias.as_ref().map(|bias| trace.input(bias));
    trace.finish(kernels::gate::reference::forward(y, x, d, z, bias))
}

#[test]
fn gated_skip_is_right() {
    for [b, l, h, p] in [[1, 1, 1, 1], [2, 37, 4, 12], [1, 150, 2, 64]] {
        let shape = [b, l, h, p];
        for bias in [None, Some(random(5, &[h * p], 2.0))] {
            let g = Gate {
                y: random(1, &shape, 1.0),
                x: random(2, &shape, 1.0),
                d: random(3, &[h], 1.0),
                z: random(4, &[b, l, h * p], 4.0),
                bias,
            };
            check!("gated skip", gate, gate_definition, &g);
        }
    }
}

struct Conv {
    x: Values,
    weight: Values,
    bias: Option<Values>,
    history: Option<Values>,
    activation: Activation,
}

fn conv<B: TrainBackend>(c: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, weight) = (trace.input(&c.x), trace.input(&c.weight));
    let bias = c.bias.as_ref().map(|bias| trace.input(bias));
    let history = c.history.as_ref().map(|history| trace.input(history));
    trace.finish(kernels::causal_conv(x, weight, bias, history, c.activation))
}

fn conv_definition<B: TrainBackend>(c: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, weight) = (trace.input(&c.x), trace.input(&c.weight));
    let bias = c.bias.as_ref().map(|bias| trace.input(bias));
    let history = c.history.as_ref().map(|history| trace.input(history));
    trace.finish(kernels::conv::reference::forward(
        x,
        weight,
        bias,
        history,
        c.activation,
    ))
}

#[test]
fn causal_conv_is_right() {
    for [b, l, c, w] in [
        [1, 1, 3, 4],
        [2, 2, 5, 4],
        [3, 40, 17, 2],
        [2, 700, 24, 4],
        [2, 9, 4, 1],
    ] {
        let history = (w > 1).then(|| random(4, &[b, w - 1, c], 1.0));
        for (bias, history, activation) in [
            (None, None, Activation::Identity),
            (Some(random(3, &[c], 1.0)), None, Activation::Silu),
            (
                Some(random(3, &[c], 1.0)),
                history.clone(),
                Activation::Identity,
            ),
            (None, history, Activation::Silu),
        ] {
            let (x, weight) = (random(1, &[b, l, c], 1.0), random(2, &[c, w], 1.0));
            let case = Conv {
                x,
                weight,
                bias,
                history,
                activation,
            };
            check!(
                format!("conv {:?}", [b, l, c, w]),
                conv,
                conv_definition,
                &case
            );
        }
    }
}

/// The convolution written out, one number at a time.
#[test]
fn causal_conv_equals_its_equation() {
    let [b, l, c, w] = [2, 6, 3, 4];
    let (x, weight) = (random(1, &[b, l, c], 1.0), random(2, &[c, w], 1.0));
    let (input, taps) = (tensor(x.clone()), tensor(weight.clone()));
    let y = kernels::causal_conv::<NdArray64>(input, taps, None, None, Activation::Identity);
    let mut expected = vec![];
    for (i, t, ch) in
        (0..b).flat_map(|i| (0..l).flat_map(move |t| (0..c).map(move |ch| (i, t, ch))))
    {
        let input = |at: usize| x.1[(i * l + at) * c + ch];
        let taps = (0..w).filter(|k| t + k >= w - 1);
        expected.push(
            taps.map(|k| weight.1[ch * w + k] * input(t + k - (w - 1)))
                .sum(),
        );
    }
    assert_close("conv", values(y), (vec![b, l, c], expected), 1e-14);
}

/// Three tokens through a mixer of `[b, h, p, n]`, `g` groups and windows of `w`: the outputs and the
/// state after them.
fn steps<B: KernelBackend>([b, h, p, n, g, w]: [usize; 6], activation: Activation) -> Vec<Values> {
    let c = h * p + 2 * g * n;
    let parameters = StepParameters::<B> {
        taps: tensor(random(1, &[c, 1, w], 1.0)),
        bias: Some(tensor(random(2, &[c], 1.0))),
        activation,
        d: tensor(random(3, &[h], 1.0)),
        z_bias: Some(tensor(random(4, &[h * p], 1.0))),
    };
    let mut state = StepState {
        conv: tensor(random(5, &[b, c, w], 1.0)),
        ssm: tensor(random(6, &[b, h, p, n], 1.0)),
    };
    let mut outputs = vec![];
    for seed in 7..10 {
        let projected = tensor(random(seed, &[b, c + h * p + h], 3.0));
        let (y, after) = kernels::recurrent_step(projected, parameters.clone(), state);
        state = after;
        outputs.push(values(y));
    }
    outputs.extend([values(state.conv), values(state.ssm)]);
    outputs
}

#[test]
fn recurrent_step_is_right() {
    for sizes in [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 16, 24, 4, 4],
        [3, 6, 8, 16, 2, 3],
    ] {
        for activation in [Activation::Identity, Activation::Silu] {
            let fast = steps::<Flex>(sizes, activation);
            let exact = steps::<NdArray64>(sizes, activation);
            for (fast, exact) in fast.into_iter().zip(exact) {
                let case = format!("step {sizes:?} {activation:?}");
                assert_close(&case, fast, exact, F32_TOLERANCE);
            }
        }
    }
}

struct Distillation {
    student: Values,
    teacher: Values,
    labels: Option<Vec<i64>>,
    weights: DistillationWeights,
}

impl Distillation {
    fn labels<B: Backend>(&self) -> Option<Tensor<B, 1, Int>> {
        let labels = self.labels.as_ref()?;
        Some(Tensor::from_data(
            TensorData::new(labels.clone(), [labels.len()]),
            &Default::default(),
        ))
    }
}

fn distillation<B: TrainBackend>(c: &Distillation) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (student, teacher) = (trace.input(&c.student), tensor(c.teacher.clone()));
    trace.finish(kernels::distillation_loss(
        student,
        teacher,
        c.labels(),
        c.weights,
    ))
}

fn distillation_definition<B: TrainBackend>(c: &Distillation) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (student, teacher) = (trace.input(&c.student), tensor(c.teacher.clone()));
    let loss = kernels::distillation::reference::forward(student, teacher, c.labels(), c.weights);
    trace.finish(loss)
}

#[test]
fn distillation_loss_is_right() {
    for ([t, v], temperature, hard) in [
        ([1, 5], 1.0, 0.0),
        ([40, 104], 1.0, 0.0),
        ([40, 104], 2.5, 0.0),
        ([40, 105], 0.7, 0.3),
        ([3, 4096], 1.0, 1.0),
    ] {
        let case = Distillation {
            student: random(1, &[t, v], 8.0),
            teacher: random(2, &[t, v], 8.0),
            labels: Some((0..t as i64).map(|i| i * 7 % v as i64).collect()),
            weights: DistillationWeights { temperature, hard },
        };
        check!("distillation", distillation, distillation_definition, &case);
    }
}

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

fn attention<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(kernels::attention(q, k, v))
}

fn attention_definition<B: TrainBackend>(q: &Values, k: &Values, v: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (trace.input(q), trace.input(k), trace.input(v));
    trace.finish(kernels::attention::reference::forward(q, k, v))
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

fn rotary<B: TrainBackend>(x: &Values, cos: &Values, sin: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    trace.finish(kernels::rotary(x, tensor(cos.clone()), tensor(sin.clone())))
}

fn rotary_definition<B: TrainBackend>(x: &Values, cos: &Values, sin: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(x);
    let (cos, sin) = (tensor(cos.clone()), tensor(sin.clone()));
    trace.finish(kernels::rotary::reference::forward(x, cos, sin))
}

#[test]
fn rotary_is_right() {
    for [b, l, h, p, r] in [[1, 1, 1, 2, 1], [2, 19, 3, 16, 4], [2, 130, 2, 12, 6]] {
        // Not a rotation: the op does not ask that, and an exchange of cos and sin would show.
        let (cos, sin) = (random(2, &[l, r], 1.0), random(3, &[l, r], 1.0));
        check!(
            "rotary",
            rotary,
            rotary_definition,
            &random(1, &[b, l, h, p], 1.0),
            &cos,
            &sin
        );
    }
}

struct Distance {
    a_log: Values,
    b: Values,
    c: Values,
    d: Values,
    q: Values,
    k: Values,
}

impl Distance {
    fn random([batch, l, h, g, n, kv, p]: [usize; 7], a_log: f64) -> Self {
        Self {
            a_log: random(1, &[batch, l, h], a_log),
            b: random(2, &[batch, l, g, n], 0.5),
            c: random(3, &[batch, l, g, n], 0.5),
            d: random(4, &[h], 1.0),
            q: random(5, &[batch, l, h, p], 2.0),
            k: random(6, &[batch, l, kv, p], 2.0),
        }
    }

    fn teacher<B: Backend>(&self) -> AttentionParts<B> {
        AttentionParts {
            q: tensor(self.q.clone()),
            k: tensor(self.k.clone()),
        }
    }
}

fn distance<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = TransferParts {
        a_log: trace.input(&case.a_log),
        b: trace.input(&case.b),
        c: trace.input(&case.c),
        d: trace.input(&case.d),
    };
    trace.finish(kernels::mixing_distance(student, case.teacher()))
}

fn distance_definition<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = TransferParts {
        a_log: trace.input(&case.a_log),
        b: trace.input(&case.b),
        c: trace.input(&case.c),
        d: trace.input(&case.d),
    };
    trace.finish(kernels::distance::reference::forward(
        student,
        case.teacher(),
    ))
}

#[test]
fn mixing_distance_is_right() {
    for sizes in [
        [1, 1, 1, 1, 1, 1, 2],
        [2, 37, 4, 4, 8, 4, 12],
        [2, 70, 4, 2, 5, 1, 6],
        [1, 200, 3, 3, 16, 3, 16],
    ] {
        for a_log in [1.0, 6.0] {
            let case = Distance::random(sizes, a_log);
            check!(
                format!("distance {sizes:?} {a_log}"),
                distance,
                distance_definition,
                &case
            );
        }
    }
}

/// The distance must be that of the matrices that the scan and the attention apply.
#[test]
fn transfer_matrix_is_what_the_scan_applies() {
    let [batch, l, h, g, n, p] = [2, 45, 4, 2, 6, 3];
    let case = Distance::random([batch, l, h, g, n, 1, 2], 3.0);
    let x = tensor::<NdArray64, 4>(random(9, &[batch, l, h, p], 1.0));
    let parts = TransferParts {
        a_log: tensor(case.a_log.clone()),
        b: tensor(case.b.clone()),
        c: tensor(case.c.clone()),
        d: tensor(case.d.clone()),
    };
    let matrix = kernels::transfer_matrix::<NdArray64>(parts.clone());
    let applied = matrix.matmul(x.clone().swap_dims(1, 2)).swap_dims(1, 2);
    let (y, _) = kernels::ssd_scan(x.clone(), parts.a_log, parts.b, parts.c, None, 16);
    let scanned = y + x * parts.d.reshape([1, 1, h, 1]);
    assert_close("T x", values(applied), values(scanned), 1e-12);
}

/// No number moves by more than half a step of its row, of which the largest number is 127.
#[test]
fn eight_bits_hold_a_weight_to_half_a_step() {
    fn check<B: KernelBackend>() {
        let [d_out, d_in] = [5, 12];
        let (shape, mut weight) = random(1, &[d_out, d_in], 1.0);
        weight[3] = -4.0;
        // A row of zeros has no step.
        weight[d_in..2 * d_in].fill(0.0);
        let packed = Weight::<B>::Float(tensor((shape, weight.clone()))).to_int8();
        assert_eq!(packed.dims(), [d_out, d_in]);
        assert!(packed.bytes() < 4 * d_out * d_in, "{}", packed.bytes());
        let (_, held) = values(packed.to_float(DType::F32));
        for (row, held) in weight.chunks(d_in).zip(held.chunks(d_in)) {
            let largest = row.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
            let half = largest / 254.0;
            let moved = row.iter().zip(held).map(|(a, b)| (a - b).abs());
            assert!(
                moved.clone().all(|by| by <= half * 1.00001),
                "{row:?} became {held:?}"
            );
            assert!(
                largest == 0.0 || moved.sum::<f64>() > 0.0,
                "{held:?} is {row:?}"
            );
        }
    }
    check::<NdArray64>();
    check::<Flex>();
}
