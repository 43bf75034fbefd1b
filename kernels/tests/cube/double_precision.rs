//! No kernel computes in f64. For f64, every op must use its reference, and be as accurate as on the CPU.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::decode::attention_step::{NewToken, attention_step};
use kernels::decode::projections::{self, Activation, Normalisation, Projection, Weight};
use kernels::scan::causal_conv::{self, ConvInputs};
use kernels::scan::skip_gate::SkipGateInputs;
use kernels::*;

use crate::support::*;

/// The difference that another order of the same sums may cause in 64 bits.
const TOLERANCE: f64 = 1e-12;

/// The same numbers on any backend that has f64.
struct Inputs(Random);

impl Inputs {
    fn tensor<B: Backend, const D: usize>(&mut self, shape: [usize; D]) -> Tensor<B, D> {
        let data = self.0.values(shape, 1.0, DType::F64).exact().into_data();
        Tensor::from_data(data, (&Default::default(), DType::F64))
    }
}

fn ids<B: Backend, const D: usize>(shape: [usize; D]) -> Tensor<B, D, Int> {
    let count: usize = shape.iter().product();
    let ids: Vec<i64> = (0..count as i64).map(|i| i * 3 % 5).collect();
    Tensor::from_data(TensorData::new(ids, shape), &Default::default())
}

fn scans<B: KernelBackend>(outputs: &mut Outputs) {
    let mut inputs = Inputs(Random::new(1));
    let [b, l, h, p, g, n] = [2, 11, 4, 3, 2, 5];
    let conv = ConvInputs::<B> {
        x: inputs.tensor([b, l, h]),
        weight: inputs.tensor([h, 4]),
        bias: Some(inputs.tensor([h])),
        history: Some(inputs.tensor([b, 3, h])),
        activation: causal_conv::Activation::Silu,
        documents: None,
    };
    let gradients = B::causal_conv_backward(conv.clone(), inputs.tensor([b, l, h]), [true; 4]);
    outputs.push(output("convolution", B::causal_conv_forward(conv)));
    outputs.extend(gradients.x.map(|x| output("convolution dx", x)));
    outputs.extend(gradients.weight.map(|x| output("convolution dweight", x)));

    let gate = SkipGateInputs::<B> {
        y: inputs.tensor([b, l, h, p]),
        x: inputs.tensor([b, l, h, p]),
        d: inputs.tensor([h]),
        z: inputs.tensor([b, l, h * p]),
        z_bias: Some(inputs.tensor([h * p])),
    };
    let gradients = B::skip_gate_backward(gate.clone(), inputs.tensor([b, l, h * p]));
    outputs.push(output("skip and gate", B::skip_gate_forward(gate)));
    outputs.push(output("skip and gate dz", gradients.z));

    let scan = ScanInputs::<B> {
        x: inputs.tensor([b, l, h, p]),
        a_log: inputs.tensor([b, l, h]),
        b: inputs.tensor([b, l, g, n]),
        c: inputs.tensor([b, l, g, n]),
        initial_state: Some(inputs.tensor([b, h, p, n])),
    };
    let gradients = B::ssd_scan_backward(scan.clone(), inputs.tensor([b, l, h, p]), 4);
    let epilogue = Epilogue {
        d: Some(inputs.tensor([h])),
        z: Some(inputs.tensor([b, l, h * p])),
        z_bias: None,
    };
    outputs.push(output("scan", B::ssd_scan_forward(scan.clone(), 4).0));
    outputs.push(output("scan dx", gradients.x));
    outputs.push(output("scan da_log", gradients.a_log));
    outputs.push(output("gated scan", gated_scan(scan, epilogue, 4).0));
}

fn layers<B: KernelBackend>(outputs: &mut Outputs) {
    let mut inputs = Inputs(Random::new(2));
    let [b, l, h, g, p, d] = [2, 7, 4, 2, 6, 8];
    let x = inputs.tensor::<B, 3>([b, l, d]);
    let (gamma, beta) = (inputs.tensor([d]), inputs.tensor([d]));
    let (weight, bias) = (inputs.tensor([5, d]), inputs.tensor([5]));
    outputs.push(output("linear", linear(x.clone(), weight, Some(bias))));
    let y = layer_norm(x.clone(), gamma.clone(), beta, 1e-5);
    outputs.push(output("layer norm", y));
    outputs.push(output("rms norm", rms_norm(x.clone(), gamma, 1e-5)));
    outputs.push(output("gelu", gelu_new(x.clone())));
    outputs.push(output(
        "swiglu",
        swiglu(x.clone(), inputs.tensor([b, l, d])),
    ));
    let table = inputs.tensor::<B, 2>([5, d]);
    outputs.push(output("embedding", embedding(table, ids([b, l]))));
    let q = inputs.tensor::<B, 4>([b, l, h, p]);
    let (cos, sin) = (inputs.tensor([l, 2]), inputs.tensor([l, 2]));
    outputs.push(output("rotary", rotary(q.clone(), cos, sin)));
    let (k, v) = (inputs.tensor([b, l, g, p]), inputs.tensor([b, l, g, p]));
    outputs.push(output("attention", attention(q.clone(), k.clone(), v)));
    outputs.push(output("attention matrix", attention_matrix(q, k)));
}

fn losses<B: KernelBackend>(outputs: &mut Outputs) {
    let mut inputs = Inputs(Random::new(3));
    let [b, l, h, g, n, p] = [2, 9, 4, 2, 5, 6];
    let student = TransferParts::<B> {
        a_log: inputs.tensor([b, l, h]),
        b: inputs.tensor([b, l, g, n]),
        c: inputs.tensor([b, l, g, n]),
        d: inputs.tensor([h]),
    };
    let teacher = AttentionParts {
        q: inputs.tensor([b, l, h, p]),
        k: inputs.tensor([b, l, g, p]),
        window: None,
        documents: None,
    };
    let loss = B::mixing_distance_forward(student.clone(), teacher.clone());
    let (_, gradients) = B::mixing_distance_with_gradients(student, teacher);
    outputs.push(output("stage 1", loss));
    outputs.push(output("stage 1 da_log", gradients.a_log));
    outputs.push(output("stage 1 db", gradients.b));
    let (loss, gradient) =
        B::rows_distance_with_gradient(inputs.tensor([l, p]), inputs.tensor([l, p]));
    outputs.push(output("stage 2", loss));
    outputs.push(output("stage 2 gradient", gradient));
    let (student, teacher) = (inputs.tensor::<B, 2>([l, p]), inputs.tensor([l, p]));
    let weights = DistillationWeights {
        temperature: 2.0,
        hard: 0.3,
    };
    let (loss, gradient) = distillation_block(student, teacher, Some(ids([l])), weights, l);
    outputs.push(output("stage 3", loss));
    outputs.push(output("stage 3 gradient", gradient));
    let step = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 3,
    };
    let parameter = inputs.tensor::<B, 2>([l, p]);
    let (gradient, scale) = (inputs.tensor([l, p]), inputs.tensor([1]));
    let moments = [inputs.tensor([l, p]), inputs.tensor([l, p]).abs()];
    outputs.push(output("norm", squared_norm(parameter.clone())));
    let (parameter, _) = adamw_step(parameter, gradient, moments, scale, step);
    outputs.push(output("adamw", parameter));
}

fn decoding<B: KernelBackend>(outputs: &mut Outputs) {
    let mut inputs = Inputs(Random::new(4));
    let [b, h, p, g, n, w, d] = [2, 4, 6, 2, 5, 4, 8];
    let c = h * p + 2 * g * n;
    let parameters = StepParameters::<B> {
        taps: inputs.tensor([c, 1, w]),
        bias: None,
        activation: causal_conv::Activation::Silu,
        d: inputs.tensor([h]),
        z_bias: None,
        a_log_bias: None,
        bc_norms: None,
        turn: None,
    };
    let state = StepState {
        conv: inputs.tensor([b, c, w]),
        ssm: inputs.tensor([b, h, p, n]),
    };
    let projected = inputs.tensor([b, c + h * p + h]);
    let (y, state) = recurrent_step(projected, parameters, state);
    outputs.push(output("recurrent step", y));
    outputs.push(output("recurrent step's state", state.ssm));

    let token = NewToken::<B> {
        q: inputs.tensor([b, h * p]),
        k: inputs.tensor([b, g * p]),
        v: inputs.tensor([b, g * p]),
        cos: inputs.tensor([1, 2]),
        sin: inputs.tensor([1, 2]),
        angle: 0,
    };
    let (_, cache) = attention_step(token.clone(), None, h);
    outputs.push(output(
        "attention step",
        attention_step(token, Some(cache), h).0,
    ));

    let mut projection = |d_out: usize, d_in: usize| Projection::<B> {
        weight: Weight::Float(inputs.tensor([d_out, d_in])),
        bias: Some(inputs.tensor([d_out])),
    };
    let (into, out_of) = (projection(5, d), projection(d, 5));
    let norm = Normalisation {
        gamma: inputs.tensor([d]),
        beta: Some(inputs.tensor([d])),
        epsilon: 1e-5,
    };
    let table = inputs.tensor::<B, 2>([5, d]);
    outputs.push(output("rows", projections::rows(table, ids([b]))));
    let x = inputs.tensor::<B, 2>([b, d]);
    let projections = vec![(into, Activation::GeluNew)];
    let u = projections::into(x.clone(), norm, projections).remove(0);
    outputs.push(output("projection into", u.clone()));
    let y = projections::out_of(x, vec![(u.into(), out_of)]);
    outputs.push(output("projection out of", y));
}

fn all<B: KernelBackend>() -> Outputs {
    let mut outputs = vec![];
    scans::<B>(&mut outputs);
    layers::<B>(&mut outputs);
    losses::<B>(&mut outputs);
    decoding::<B>(&mut outputs);
    outputs
}

#[test]
fn no_op_computes_f64_in_f32() {
    with_device(|| {
        // Vulkan has doubles, but no exponential of them.
        if cfg!(not(feature = "cuda")) {
            return tests::report_skipped("f64 is tested on CUDA alone");
        }
        if !Cube::supports_dtype(&Default::default(), DType::F64) {
            return tests::report_skipped("the device has no f64");
        }
        for ((name, found), (_, exact)) in all::<Cube>().into_iter().zip(all::<Exact>()) {
            assert_eq!(found.dtype, DType::F64, "{name}");
            let error = distance(&exact, &found);
            assert!(error <= TOLERANCE, "{name} is off by {error:.2e}");
        }
    });
}
