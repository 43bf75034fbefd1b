//! Rows of several documents: the kernels against the references, which the tests of the equations compare with each
//! document alone.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use kernels::dense::attention::{Attention, Gradients, reference as attention_reference};
use kernels::losses::mixing_matrices::{MixingMatrices, reference as distance_reference};
use kernels::scan::causal_conv::{
    Activation, CausalConv, ConvGradients, ConvInputs, reference as conv_reference,
};
use kernels::scan::ssd::{SsdScan, reference as scan_reference};
use kernels::{
    AttentionParts, DocumentStarts, ScanInputs, SsdGradients, TransferParts, Visible, Window,
};

use crate::support::*;

/// Where the documents of `b` rows of `l` tokens begin.
struct Starts {
    shape: [usize; 2],
    starts: Vec<i64>,
}

impl Starts {
    /// With documents of 1 to `longest` tokens.
    fn random(random: &mut Random, [b, l]: [usize; 2], longest: usize) -> Self {
        let mut starts = vec![];
        for _ in 0..b {
            let mut start = 0;
            while start < l {
                let length = random.size(1, longest).min(l - start);
                starts.extend(vec![start as i64; length]);
                start += length;
            }
        }
        let shape = [b, l];
        Self { shape, starts }
    }

    fn on<B: Backend>(&self) -> DocumentStarts<B> {
        let data = TensorData::new(self.starts.clone(), self.shape);
        DocumentStarts::new(Tensor::from_data(data, &Default::default()))
    }
}

/// Lengths around the tiles of 16, 32 and 64 and the chunks of 64 and 128, and documents of one token, of some, of more
/// than a tile, and of the whole row.
fn sizes(random: &mut Random) -> ([usize; 2], usize) {
    let l = random.of(&[1, 2, 17, 63, 64, 65, 127, 128, 129, 200, 300]);
    let longest = random.of(&[1, 5, 30, 64, 150, 1000]);
    ([random.size(1, 3), l], longest)
}

fn attention_outputs<B: Backend>(y: Tensor<B, 4>, gradients: Gradients<B>) -> Outputs {
    let (dq, dk, dv) = gradients;
    // In documents of one token those to queries and keys are 0, but the difference of two equal sums is not quite.
    let all = [dq, dk, dv.clone()].map(|x| x.flatten::<1>(0, 3));
    vec![
        output("y", y),
        output("dv", dv),
        output("all", Tensor::cat(all.into(), 0)),
    ]
}

#[test]
fn attention_keeps_documents_apart() {
    with_device(|| {
        for mut random in random_cases() {
            let ([b, l], longest) = sizes(&mut random);
            let (h, g) = random.of(&[(1, 1), (3, 3), (4, 2)]);
            // A width that tensor cores take comes with each dtype.
            for (dtype, p) in dtypes().into_iter().zip([33, 64, 128]) {
                let window = random.of(&[None, Some((1, 0)), Some((8, 2)), Some((70, 4))]);
                let window = window.map(|(window, sinks)| Window { window, sinks });
                let starts = Starts::random(&mut random, [b, l], longest);
                let values = [
                    random.values([b, l, h, p], 2.0, dtype),
                    random.values([b, l, g, p], 2.0, dtype),
                    random.values([b, l, g, p], 1.0, dtype),
                    random.values([b, l, h, p], 1.0, dtype),
                ];
                let exact = {
                    let [q, k, v, dy] = values.each_ref().map(Values::exact);
                    let visible = Visible {
                        window,
                        documents: Some(starts.on()),
                    };
                    let [q_, k_, v_] = [&q, &k, &v].map(Tensor::clone);
                    let y = attention_reference::forward(q_, k_, v_, visible.clone());
                    attention_outputs(y, attention_reference::backward(q, k, v, dy, visible))
                };
                let run = || {
                    let [q, k, v, dy] = values.each_ref().map(Values::cube);
                    let visible = Visible {
                        window,
                        documents: Some(starts.on()),
                    };
                    poison();
                    let [q_, k_, v_] = [&q, &k, &v].map(Tensor::clone);
                    let (y, saved) = Cube::attention_forward_saving(q_, k_, v_, visible.clone());
                    assert!(saved.is_some(), "the kernels are not taken");
                    poison();
                    attention_outputs(y, Cube::attention_backward(q, k, v, saved, dy, visible))
                };
                let name = format!(
                    "attention b{b} l{l} h{h} g{g} p{p} within {window:?}, documents to {longest}, {dtype:?}"
                );
                check(&name, tolerance(dtype), exact, run);
            }
        }
    });
}

fn conv_outputs<B: Backend>(y: Tensor<B, 3>, gradients: ConvGradients<B>) -> Outputs {
    let mut outputs = vec![output("y", y)];
    outputs.extend(gradients.x.map(|x| output("dx", x)));
    outputs.extend(gradients.weight.map(|x| output("dweight", x)));
    outputs.extend(gradients.bias.map(|x| output("dbias", x)));
    outputs.extend(gradients.history.map(|x| output("dhistory", x)));
    outputs
}

#[test]
fn the_convolution_keeps_documents_apart() {
    with_device(|| {
        for mut random in random_cases() {
            let ([b, l], longest) = sizes(&mut random);
            let (c, w) = (random.of(&[3, 16, 40]), random.of(&[1, 2, 4, 5]));
            let activation = random.of(&[Activation::Identity, Activation::Silu]);
            let has_history = random.flag() && w > 1;
            for dtype in dtypes() {
                let starts = Starts::random(&mut random, [b, l], longest);
                let x = random.values([b, l, c], 1.0, dtype);
                let weight = random.values([c, w], 1.0, dtype);
                let bias = random.values([c], 1.0, dtype);
                let history = has_history.then(|| random.values([b, w - 1, c], 1.0, dtype));
                let dy = random.values([b, l, c], 1.0, dtype);
                let wanted = [true, true, true, has_history];
                let exact = {
                    let inputs = ConvInputs {
                        x: x.exact(),
                        weight: weight.exact(),
                        bias: Some(bias.exact()),
                        history: history.as_ref().map(Values::exact),
                        activation,
                        documents: Some(starts.on()),
                    };
                    let y = conv_reference::forward(inputs.clone());
                    conv_outputs(y, conv_reference::backward(inputs, dy.exact(), wanted))
                };
                let run = || {
                    let inputs = ConvInputs {
                        x: x.cube(),
                        weight: weight.cube(),
                        bias: Some(bias.cube()),
                        history: history.as_ref().map(Values::cube),
                        activation,
                        documents: Some(starts.on()),
                    };
                    let dy = dy.cube();
                    poison();
                    let y = Cube::causal_conv_forward(inputs.clone());
                    conv_outputs(y, Cube::causal_conv_backward(inputs, dy, wanted))
                };
                let name = format!(
                    "convolution {:?}, width {w}, {activation:?}, history {has_history}, documents to {longest}, \
                     {dtype:?}",
                    [b, l, c]
                );
                check(&name, tolerance(dtype), exact, run);
            }
        }
    });
}

fn scan_outputs<B: Backend>(y: Tensor<B, 4>, gradients: SsdGradients<B>) -> Outputs {
    vec![
        output("y", y),
        output("dx", gradients.x),
        output("da_log", gradients.a_log),
        output("dB", gradients.b),
        output("dC", gradients.c),
        output("dinitial", gradients.initial_state),
    ]
}

#[test]
fn the_scan_begins_anew_at_documents() {
    with_device(|| {
        // Each dtype and size compiles kernels of its own, of which these ops have many.
        for mut random in random_cases().take(2) {
            let ([b, l], longest) = sizes(&mut random);
            let (h, g) = random.of(&[(2, 2), (4, 2)]);
            let (p, n) = random.of(&[(16, 16), (64, 64), (5, 7)]);
            let dtype = random.of(&dtypes());
            let starts = Starts::random(&mut random, [b, l], longest);
            let x = random.values([b, l, h, p], 1.0, dtype);
            let a_log = random.values([b, l, h], 3.0, DType::F32);
            let bs = random.values([b, l, g, n], 1.0, dtype);
            let cs = random.values([b, l, g, n], 1.0, dtype);
            let state = random.values([b, h, p, n], 1.0, DType::F32);
            let dy = random.values([b, l, h, p], 1.0, dtype);
            let exact = {
                let scan = ScanInputs {
                    x: x.exact(),
                    a_log: starts.on().cut(a_log.exact()),
                    b: bs.exact(),
                    c: cs.exact(),
                    initial_state: Some(state.exact()),
                };
                let (y, _) = scan_reference::forward(scan.clone(), 64);
                scan_outputs(y, scan_reference::backward(scan, dy.exact(), 64))
            };
            let run = || {
                let scan = ScanInputs {
                    x: x.cube(),
                    a_log: starts.on().cut(a_log.cube()),
                    b: bs.cube(),
                    c: cs.cube(),
                    initial_state: Some(state.cube()),
                };
                let dy = dy.cube();
                poison();
                let (y, _) = Cube::ssd_scan_forward(scan.clone(), 64);
                scan_outputs(y, Cube::ssd_scan_backward(scan, dy, 64))
            };
            let name = format!(
                "scan {:?}, documents to {longest}, {dtype:?}",
                [b, l, h, g, p, n]
            );
            check(&name, tolerance(dtype), exact, run);
        }
    });
}

fn distance_outputs<B: Backend>(
    forward: Tensor<B, 1>,
    (loss, gradients): (Tensor<B, 1>, TransferParts<B>),
) -> Outputs {
    vec![
        output("forward", forward),
        output("loss", loss),
        output("da_log", gradients.a_log),
        output("db", gradients.b),
        output("dc", gradients.c),
        output("dd", gradients.d),
    ]
}

#[test]
fn the_distance_is_that_of_the_documents() {
    with_device(|| {
        // Each dtype and size compiles kernels of its own, of which these ops have many.
        for mut random in random_cases().take(2) {
            let ([b, l], longest) = sizes(&mut random);
            let (h, g, k) = random.of(&[(1, 1, 1), (4, 2, 1), (3, 3, 3)]);
            let (n, p) = random.of(&[(16, 64), (64, 64), (5, 7)]);
            let dtype = random.of(&dtypes());
            let starts = Starts::random(&mut random, [b, l], longest);
            let a_log = random.values([b, l, h], 3.0, DType::F32);
            let bs = random.values([b, l, g, n], 1.0, dtype);
            let cs = random.values([b, l, g, n], 1.0, dtype);
            let d = random.values([h], 1.0, dtype);
            let q = random.values([b, l, h, p], 2.0, dtype);
            let ks = random.values([b, l, k, p], 2.0, dtype);
            let exact = {
                let student = TransferParts {
                    a_log: starts.on().cut(a_log.exact()),
                    b: bs.exact(),
                    c: cs.exact(),
                    d: d.exact(),
                };
                let teacher = AttentionParts {
                    q: q.exact(),
                    k: ks.exact(),
                    window: None,
                    documents: Some(starts.on()),
                };
                let forward = distance_reference::forward(student.clone(), teacher.clone());
                distance_outputs(
                    forward,
                    distance_reference::with_gradients(student, teacher),
                )
            };
            let run = || {
                let student = TransferParts {
                    a_log: starts.on().cut(a_log.cube()),
                    b: bs.cube(),
                    c: cs.cube(),
                    d: d.cube(),
                };
                let teacher = AttentionParts {
                    q: q.cube(),
                    k: ks.cube(),
                    window: None,
                    documents: Some(starts.on()),
                };
                poison();
                let forward = Cube::mixing_distance_forward(student.clone(), teacher.clone());
                distance_outputs(
                    forward,
                    Cube::mixing_distance_with_gradients(student, teacher),
                )
            };
            let name = format!(
                "distance {:?}, documents to {longest}, {dtype:?}",
                [b, l, h, g, k, n, p]
            );
            check(&name, tolerance(dtype), exact, run);
        }
    });
}
