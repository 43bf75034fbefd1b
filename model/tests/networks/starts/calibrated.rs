//! Fits to what the teacher's layers read, against their definitions written out.

use std::slice::from_ref;

use burn::module::Param;
use burn::tensor::{Int, Tensor};
use model::mohawk::hidden_state_loss;
use model::{CausalLm, Initialisation, Mixer, MixerConfig, ModelConfig, Outputs, Taps, TokenMixer};
use tests::networks::*;
use tests::{Goldens, assert_close};

use super::{attention, beside_window, mamba, options, random_text, student, teacher};

type B = Exact;

/// `[l, p]` of one sequence and head.
type Rows = Vec<Vec<f64>>;

/// Head `head` of `[1, l, heads * p]`.
fn head_of(x: Tensor<B, 3>, head: usize, p: usize) -> Rows {
    let [_, l, d] = x.dims();
    let rows = values(x.reshape([l, d]).narrow(1, head * p, p)).1;
    rows.chunks(p).map(<[f64]>::to_vec).collect()
}

/// Pairs `(i, i + dim / 2)` turned by the position times `theta^(-2i / dim)`.
fn turned(rows: &Rows, dim: usize, theta: f64) -> Rows {
    let turn = |(position, row): (usize, &Vec<f64>)| {
        let mut row = row.clone();
        for i in 0..dim / 2 {
            let angle = position as f64 * theta.powf(-2.0 * i as f64 / dim as f64);
            let (a, b) = (row[i], row[i + dim / 2]);
            row[i] = a * angle.cos() - b * angle.sin();
            row[i + dim / 2] = b * angle.cos() + a * angle.sin();
        }
        row
    };
    rows.iter().enumerate().map(turn).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What calibration sets, by its definition: of each head the bias of A_log, and the scales of C and D.
fn calibration(
    config: &ModelConfig,
    teacher: &CausalLm<B>,
    layer: usize,
    text: &Tensor<B, 2, Int>,
) -> Vec<(f64, f64, f64)> {
    let attention = attention(config);
    let Mixer::Attention(mixer) = &teacher.backbone.layers[layer].mixer else {
        panic!("a teacher has attention");
    };
    let d_model = config.network().d_model;
    let (p, dim) = (attention.head_dim(d_model), attention.rotary_dim(d_model));
    let group = attention.n_heads / attention.n_kv_heads;
    let sequences = (0..text.dims()[0]).map(|row| {
        let ids = text.clone().narrow(0, row, 1);
        let states = teacher.forward(ids, Taps::all()).hidden_states;
        let block = &teacher.backbone.layers[layer];
        block.input_layernorm.forward(states[layer].clone())
    });
    let sequences: Vec<Tensor<B, 3>> = sequences.collect();
    let of_head = |head: usize| {
        let read = |u: &Tensor<B, 3>| {
            let q = head_of(mixer.q_proj.forward(u.clone()), head, p);
            let k = head_of(mixer.k_proj.forward(u.clone()), head / group, p);
            let v = head_of(mixer.v_proj.forward(u.clone()), head / group, p);
            let theta = attention.rope_theta;
            (turned(&q, dim, theta), turned(&k, dim, theta), v)
        };
        let (mut back, mut tokens) = (0.0, 0.0);
        let mut contexts = vec![];
        for u in &sequences {
            let (q, k, v) = read(u);
            let mut context: Rows = vec![];
            for (i, query) in q.iter().enumerate() {
                let score = |j: usize| (dot(query, &k[j]) / (p as f64).sqrt()).exp();
                let sum: f64 = (0..=i).map(score).sum();
                let weights: Vec<f64> = (0..=i).map(|j| score(j) / sum).collect();
                back += (0..=i).map(|j| weights[j] * (i - j) as f64).sum::<f64>();
                tokens += 1.0;
                let mixed = |c: usize| (0..=i).map(|j| weights[j] * v[j][c]).sum();
                context.push((0..p).map(mixed).collect());
            }
            contexts.push(context);
        }
        let back = (back / tokens).max(0.25);
        let decay = 0.5f64.powf(1.0 / back);
        // The normal equations of the scan and of the values.
        let (mut g, mut r) = ([[0.0; 2]; 2], [0.0; 2]);
        for (u, context) in sequences.iter().zip(&contexts) {
            let (q, k, v) = read(u);
            let mut state = vec![vec![0.0; p]; p];
            for t in 0..q.len() {
                for (row, value) in state.iter_mut().zip(&v[t]) {
                    for (s, key) in row.iter_mut().zip(&k[t]) {
                        *s = decay * *s + value * key;
                    }
                }
                for c in 0..p {
                    let scan = dot(&state[c], &q[t]) / (p as f64).sqrt();
                    let features = [scan, v[t][c]];
                    for i in 0..2 {
                        r[i] += features[i] * context[t][c];
                        for j in 0..2 {
                            g[i][j] += features[i] * features[j];
                        }
                    }
                }
            }
        }
        let ridge = 1e-5 * (g[0][0] + g[1][1]) / 2.0;
        let (a, b, d) = (g[0][0] + ridge, g[0][1], g[1][1] + ridge);
        let determinant = a * d - b * b;
        let of_scan = (d * r[0] - b * r[1]) / determinant;
        let of_values = (a * r[1] - b * r[0]) / determinant;
        // sigmoid(-bias) = decay
        let bias = ((1.0 - decay) / decay).ln();
        (bias, of_scan, of_values)
    };
    (0..attention.n_heads).map(of_head).collect()
}

/// A Llama's, with shared keys, and a Phi's, with biases and rotary positions of half of each head.
#[test]
fn calibration_is_its_definition() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher::<B>(name);
        let (config, network) = &taught;
        let goldens = Goldens::open(&format!("{name}/expected"));
        let text = ids::<B>(&goldens, "input_ids", &Default::default());
        // In two pieces, as text comes.
        let pieces = [text.clone().narrow(0, 0, 1), text.clone().narrow(0, 1, 1)];
        let mixer = options(config);
        let (n, bias) = (mixer.d_state, mixer.bias);
        let how = Initialisation::Calibrated;
        let (calibrated, fits) = student(&taught, mixer.into(), how, &pieces);
        assert_eq!(fits.len(), calibrated.backbone.layers.len());
        for (layer, fit) in fits.iter().enumerate() {
            assert_eq!(fit.layer, layer);
            assert!((0.0..1.0).contains(&fit.error), "{name}: {fit:?}");
            let mixer = mamba(&calibrated, layer);
            let expected = calibration(config, network, layer, &text);
            let (biases, scales): (Vec<_>, Vec<_>) = expected
                .into_iter()
                .map(|(bias, c, d)| (bias, (c, d)))
                .unzip();
            let (of_c, of_d): (Vec<f64>, Vec<f64>) = scales.into_iter().unzip();
            let h = of_c.len();
            let check = |what: &str, found: Tensor<B, 1>, expected: Vec<f64>| {
                let what = format!("{name}, layer {layer}: {what}");
                assert_close(&what, values(found), (vec![expected.len()], expected), 1e-6);
            };
            check("D", mixer.d.val(), of_d);
            let own = if bias {
                let all = mixer.in_proj.bias.as_ref().expect("a bias").val();
                let rows = all.dims()[0];
                all.narrow(0, rows - h, h)
            } else {
                mixer.a_log_bias.as_ref().expect("a bias").val()
            };
            check("the bias of A_log", own, biases);
            let Mixer::Attention(attention) = &network.backbone.layers[layer].mixer else {
                panic!("a teacher has attention");
            };
            let d_model = config.network().d_model;
            let c = mixer.in_proj.weight.val().narrow(0, 2 * d_model, h * n);
            let scales = of_c.iter().flat_map(|c| vec![c / (n as f64).sqrt(); n]);
            let scales = tensor::<B, 1>((vec![h * n], scales.collect()), &Default::default());
            let q = attention.q_proj.weight.val() * scales.clone().reshape([h * n, 1]);
            assert_close(&format!("{name}: C"), values(c), values(q), 1e-6);
            if let Some(theirs) = &attention.q_proj.bias {
                let all = mixer.in_proj.bias.as_ref().expect("a bias").val();
                let c = all.narrow(0, 2 * d_model, h * n);
                check("the bias of C", c, values(theirs.val() * scales).1);
            }
        }
    }
}

/// Stage 2's loss on mixers, summed over layers.
fn loss(taught: &Outputs<B>, student: &CausalLm<B>) -> f64 {
    let layers = student.backbone.layers.iter().enumerate();
    let losses = layers.map(|(i, layer)| {
        let output = layer.mixer_output(taught.hidden_states[i].clone());
        hidden_state_loss(output, taught.mixer_outputs[i].clone()).into_scalar()
    });
    losses.sum()
}

/// Each start is nearer to the teacher than the one before, on other text than it was fitted to; with a window of
/// attention beside the mixer too.
#[test]
fn each_start_is_nearer_to_the_teacher() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher::<B>(name);
        let config = &taught.0;
        let text = |seed| random_text(config.network().vocab_size, seed, [8, 40]);
        let expected = taught.1.forward(text(3), Taps::all());
        let fitted = [text(1), text(2)];
        let alone: MixerConfig = options(config).into();
        let mut mixers = vec![alone];
        if name == "teacher-llama" {
            // A Phi-Mamba's file has no words for it.
            mixers.push(beside_window(config));
        }
        for mixer in mixers {
            let hows = [
                Initialisation::Copy,
                Initialisation::Calibrated,
                Initialisation::Ridge,
            ];
            let losses = hows.map(|how| {
                let (student, _) = student(&taught, mixer.clone(), how, &fitted);
                loss(&expected, &student)
            });
            let [copy, calibrated, ridge] = losses;
            println!("{name}, {}: {losses:?}", mixer.kind());
            assert!(calibrated < copy, "{name}, {}: {losses:?}", mixer.kind());
            // What a window leaves of a random teacher is noise, which other text does not share.
            let alone = matches!(mixer, MixerConfig::DiscreteMamba2(_));
            assert!(ridge < copy, "{name}, {}: {losses:?}", mixer.kind());
            assert!(
                ridge < calibrated || !alone,
                "{name}, {}: {losses:?}",
                mixer.kind()
            );
        }
    }
}

/// The output projection is where the gradient of the squared distance on the text, with the ridge, is zero; and one
/// channel of B and C holds a constant.
#[test]
fn ridge_solves_its_equations() {
    let taught = teacher::<B>("teacher-llama");
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    let how = Initialisation::Ridge;
    let mixer = options(&taught.0).into();
    let (student, fits) = student(&taught, mixer, how, std::slice::from_ref(&text));
    let outputs = taught.1.forward(text, Taps::all());
    for (layer, fit) in fits.iter().enumerate() {
        let mixer = mamba(&student, layer);
        let block = &taught.1.backbone.layers[layer];
        let u = block
            .input_layernorm
            .forward(outputs.hidden_states[layer].clone());
        let d = u.dims()[2];
        let rows = |x: Tensor<B, 3>| -> Tensor<B, 2> { x.flatten(0, 1) };
        let wanted = rows(outputs.mixer_outputs[layer].clone());
        let given = rows(mixer.forward(u.clone()));
        let mut open = mixer.clone();
        open.out_proj.weight = Param::from_tensor(Tensor::eye(d, &u.device()));
        let y = rows(open.forward(u));

        let gram = y.clone().transpose().matmul(y.clone());
        let diagonal = (gram * Tensor::eye(d, &y.device())).sum().into_scalar();
        let ridge = 1e-3 * diagonal / d as f64;
        let weight = mixer.out_proj.weight.val().transpose();
        let lacking = wanted.clone() - given;
        let right = y.clone().transpose().matmul(wanted.clone());
        let gradient = y.transpose().matmul(lacking.clone()) - weight * ridge;
        let largest = |x: Tensor<B, 2>| x.abs().max().into_scalar();
        assert!(largest(gradient) < 1e-9 * largest(right), "layer {layer}");
        let norm = |x: Tensor<B, 2>| x.powi_scalar(2).sum().into_scalar().sqrt();
        let share = norm(lacking) / norm(wanted);
        assert!((fit.error - share).abs() < 1e-9, "{fit:?}: {share}");

        let (n, h) = (mixer.config().d_state, mixer.config().n_v_heads);
        // The last pair of a rotation turns slowest.
        let channel = n / 2 - 1;
        let bias = values(mixer.conv1d.bias.as_ref().expect("a bias").val()).1;
        let weight = mixer.in_proj.weight.val();
        for head in 0..h {
            for start in [d, d + h * n] {
                let at = start + head * n + channel;
                assert_eq!(
                    largest(weight.clone().narrow(0, at, 1)),
                    0.0,
                    "layer {layer}"
                );
                assert_ne!(bias[at], 0.0, "layer {layer}");
            }
        }
    }
}

/// Even sizes of B and C change nothing that a calibrated copy gives.
#[test]
fn an_even_copy_gives_the_same() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher::<B>(name);
        let text = random_text(taught.0.network().vocab_size, 1, [2, 40]);
        let start = |how: Initialisation| {
            let mixer = options(&taught.0).into();
            let (student, _) = student(&taught, mixer, how, from_ref(&text));
            let c = mamba(&student, 0).in_proj.weight.val();
            let outputs = student.forward(text.clone(), Taps::all());
            (outputs.logits.expect("asked for"), values(c).1)
        };
        let (logits, weights) = start(Initialisation::Calibrated);
        let (even, even_weights) = start(Initialisation::Even);
        assert_ne!(weights, even_weights, "{name}");
        assert_close(name, values(even), values(logits), 1e-9);
    }
}
