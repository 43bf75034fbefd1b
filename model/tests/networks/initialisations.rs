//! The ways in which a student takes over its teacher's attention: the copy against recorded vectors, calibration
//! against its definition written out, and what each is worth before training.

use std::cell::Cell;
use std::slice::from_ref;

use burn::module::Param;
use burn::tensor::{Int, Tensor};
use kernels::Window;
use model::mohawk::{hidden_state_loss, matrix_orientation_loss};
use model::{
    AttentionConfig, BesideAttentionConfig, CausalLm, DiscreteMamba2, DiscreteMamba2Config, Family,
    FeatureMap, InitError, Initialisation, Joined, Linear, LlamaConfig, LlamaFamily, Mixer,
    MixerConfig, ModelConfig, Outputs, Taps, TokenMixer, transfer_weights,
};
use tests::networks::*;
use tests::{Goldens, assert_close, goldens_dir};

type B = Exact;

/// A teacher of the goldens.
fn teacher(name: &str) -> (ModelConfig, CausalLm<B>) {
    model::load_any(goldens_dir().join(name), &Default::default()).expect("a teacher")
}

/// One of the sizes of `teacher-llama`, with random weights, whose queries and keys have norms.
pub fn normed_teacher() -> (ModelConfig, CausalLm<B>) {
    let mut config = LlamaConfig {
        vocab_size: 104,
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        ..LlamaConfig::default_of(LlamaFamily::Qwen3)
    };
    config.attention.n_heads = 4;
    config.attention.n_kv_heads = 2;
    config.attention.head_dim = Some(12);
    let network = CausalLm::init(&config, 3, &Default::default());
    (config.into(), network)
}

fn attention(config: &ModelConfig) -> AttentionConfig {
    match &config.network().mixers[0] {
        MixerConfig::Attention(attention) => attention.clone(),
        _ => panic!("a teacher has attention"),
    }
}

/// The options of a mixer that can take over all of the teacher's attention.
fn options(config: &ModelConfig) -> DiscreteMamba2Config {
    let attention = attention(config);
    DiscreteMamba2Config {
        d_state: attention.head_dim(config.network().d_model),
        bias: attention.dense_bias,
        z_bias: !attention.dense_bias,
        bc_norm: attention.qk_norm,
        chunk_size: 8,
        ..DiscreteMamba2Config::with_heads(attention.n_heads)
    }
}

/// The student of a teacher with `mixer`, that starts by `how` on `text`.
fn student(
    (config, teacher): &(ModelConfig, CausalLm<B>),
    mixer: MixerConfig,
    how: Initialisation,
    text: &[Tensor<B, 2, Int>],
) -> (CausalLm<B>, Vec<model::Fit>) {
    let network = config.network();
    let mixer = how.options_of(mixer, &network.mixers[0], network.d_model);
    let student = config.student(&mixer, &[]).expect("a student");
    // As a file says it.
    let student = ModelConfig::from_json(&student.to_json()).expect("its own file");
    let mut network = CausalLm::init(&student, 5, &Default::default());
    transfer_weights(&mut network, teacher).expect("the sizes fit");
    let fits = how.apply(&mut network, teacher, text, &|| false);
    let fits = fits.expect("a start");
    (network, fits)
}

fn mamba(model: &CausalLm<B>, layer: usize) -> &DiscreteMamba2<B> {
    model.backbone.layers[layer]
        .mixer
        .mamba()
        .expect("a mixer with a state space")
}

/// Every recorded value of the student that starts as a copy.
#[test]
fn the_copy_is_the_recorded_one() {
    let case = "init-from-attention";
    let goldens = Goldens::open(&format!("{case}/expected"));
    let device = Default::default();
    let (config, recorded) = model::load_any::<B>(goldens_dir().join(case), &device).expect("one");
    let taught = teacher("teacher-llama");
    let mixer = options(&taught.0).into();
    let (mut copied, fits) = student(&taught, mixer, Initialisation::Copy, &[]);
    assert!(fits.is_empty());

    for layer in 0..copied.backbone.layers.len() {
        let recorded = mamba(&recorded, layer);
        let Mixer::DiscreteMamba2(mixer) = &mut copied.backbone.layers[layer].mixer else {
            panic!("a mixer");
        };
        // The rows of A_log are drawn; all others are the teacher's, or the gate's.
        let theirs = recorded.in_proj.weight.val();
        let rows = theirs.dims()[0] - recorded.d.dims()[0];
        let drawn = theirs.clone().narrow(0, rows, recorded.d.dims()[0]);
        let kept = mixer.in_proj.weight.val().narrow(0, 0, rows);
        assert_eq!(
            values(kept.clone()),
            values(theirs.narrow(0, 0, rows)),
            "{layer}"
        );
        mixer.in_proj.weight = Param::from_tensor(Tensor::cat(vec![kept, drawn], 0));
        let others = |mixer: &DiscreteMamba2<B>| {
            let z_bias = mixer.z_bias.as_ref().expect("a bias").val();
            let bias = mixer.conv1d.bias.as_ref().expect("a bias").val();
            let weights = [values(mixer.out_proj.weight.val()), values(mixer.d.val())];
            let conv = [
                values(mixer.conv1d.weight.val()),
                values(bias),
                values(z_bias),
            ];
            (weights, conv)
        };
        let ((weights, conv), (theirs, their_conv)) = (others(mixer), others(recorded));
        assert_eq!(
            (weights, conv[..2].to_vec()),
            (theirs, their_conv[..2].to_vec()),
            "{layer}"
        );
        assert_close("the gate", conv[2].clone(), their_conv[2].clone(), 1e-7);
    }
    let names = |model: &CausalLm<B>| model::named_parameters(model, config.layout()).len();
    assert_eq!(names(&copied), names(&recorded));

    let ids = ids::<B>(&goldens, "input_ids", &device);
    let outputs = copied.forward(ids.clone(), Taps::all());
    let taught: Outputs<B> = taught.1.forward(ids, Taps::all());
    let mut losses = [vec![], vec![], vec![]];
    for (i, layer) in copied.backbone.layers.iter().enumerate() {
        let key = |part: &str| format!("{part}.{i}");
        let matrix = outputs.mixing_matrices[i].clone();
        assert_golden(case, &goldens, &key("transfer_matrices"), matrix, EXACT);
        let output = outputs.mixer_outputs[i].clone();
        assert_golden(case, &goldens, &key("mixer_outputs"), output, EXACT);
        let state = outputs.hidden_states[i].clone();
        assert_golden(case, &goldens, &key("hidden_states"), state, EXACT);

        let x = taught.hidden_states[i].clone();
        let matrix = layer.mixing_matrix(x.clone());
        losses[0].push(matrix_orientation_loss(
            matrix,
            taught.mixing_matrices[i].clone(),
        ));
        let output = layer.mixer_output(x.clone());
        losses[1].push(hidden_state_loss(output, taught.mixer_outputs[i].clone()));
        let after = taught.hidden_states[i + 1].clone();
        losses[2].push(hidden_state_loss(layer.forward(x), after));
    }
    let keys = ["stage1.loss", "stage2.mixer_loss", "stage2.block_loss"];
    for (key, losses) in keys.into_iter().zip(losses) {
        assert_golden(case, &goldens, key, Tensor::<B, 1>::cat(losses, 0), EXACT);
    }
    let logits = outputs.logits.expect("asked for");
    assert_golden(case, &goldens, "logits", logits, EXACT);
}

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
        let taught = teacher(name);
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
    let device = Default::default();
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher(name);
        let config = &taught.0;
        let vocabulary = config.network().vocab_size as i64;
        let text = |seed: i64| {
            let ids = (0..8 * 40).map(|i: i64| (i * i * 31 + i * 17 + seed * 7919) % vocabulary);
            let data = burn::tensor::TensorData::new(ids.collect::<Vec<_>>(), [8, 40]);
            Tensor::<B, 2, Int>::from_data(data, &device)
        };
        let expected = taught.1.forward(text(3), Taps::all());
        let fitted = [text(1), text(2)];
        let alone: MixerConfig = options(config).into();
        let mut mixers = vec![alone];
        if name == "teacher-llama" {
            // A Phi-Mamba's file has no words for it.
            mixers.push(MixerConfig::BesideAttention(BesideAttentionConfig {
                ssm: options(config),
                attention: Some(AttentionConfig {
                    window: Some(Window {
                        window: 4,
                        sinks: 1,
                    }),
                    ..attention(config)
                }),
                heads: vec![],
                joined: Joined::Sum,
            }));
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

/// Heads that are kept are the teacher's, with the keys and values that they share; what they give is not fitted
/// again.
#[test]
fn kept_heads_are_the_teachers() {
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    let heads = vec![1, 2];
    for taught in [teacher("teacher-llama"), normed_teacher()] {
        let of_teacher = attention(&taught.0);
        let mixer = MixerConfig::BesideAttention(BesideAttentionConfig {
            ssm: options(&taught.0),
            attention: Some(AttentionConfig {
                n_heads: 2,
                n_kv_heads: 2,
                head_dim: Some(of_teacher.head_dim(48)),
                ..of_teacher
            }),
            heads: heads.clone(),
            joined: Joined::Sum,
        });
        let how = Initialisation::Calibrated;
        let (student, fits) = student(&taught, mixer, how, from_ref(&text));
        assert!(
            fits.iter().all(|fit| (0.0..1.0).contains(&fit.error)),
            "{fits:?}"
        );
        let outputs = taught.1.forward(text.clone(), Taps::all());
        for (i, layer) in student.backbone.layers.iter().enumerate() {
            let u = layer
                .input_layernorm
                .forward(outputs.hidden_states[i].clone());
            let Mixer::BesideAttention(both) = &layer.mixer else {
                panic!("two mixers");
            };
            let attention = both.attention.as_ref().expect("heads");
            let matrices = values(attention.mixing_matrix(u));
            let theirs = outputs.mixing_matrices[i].clone();
            let theirs = heads.iter().map(|head| theirs.clone().narrow(1, *head, 1));
            let theirs = values(Tensor::<B, 4>::cat(theirs.collect(), 1));
            assert_close("matrices", matrices, theirs, 1e-12);
            // Nothing of a kept head's output is left for the mixer.
            let d = values(both.ssm.d.val()).1;
            assert!(heads.iter().all(|head| d[*head].abs() < 1e-12), "{d:?}");
            assert!(d[0].abs() > 1e-6 && d[3].abs() > 1e-6, "{d:?}");
            if both.ssm.c_norm.is_some() {
                // The norm of C hides the scale of the scan: the output projection has it.
                let weight = both.ssm.out_proj.weight.val();
                for head in &heads {
                    let columns = weight.clone().narrow(1, head * 12, 12);
                    assert_eq!(columns.abs().max().into_scalar(), 0.0, "layer {i}");
                }
            }
        }
    }
}

/// Numbers of the state that the attention lacks change nothing at first, and can learn; a feature map is fitted too.
#[test]
fn a_larger_state_starts_as_the_smaller_one() {
    use burn::backend::Autodiff;
    use burn::module::AutodiffModule;
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    let taught = teacher("teacher-llama");
    let how = Initialisation::Calibrated;
    let of = |d_state: usize, feature_map: FeatureMap| {
        let mixer = DiscreteMamba2Config {
            d_state,
            feature_map,
            ..options(&taught.0)
        };
        student(&taught, mixer.into(), how, from_ref(&text))
    };
    let (small, fits) = of(12, FeatureMap::Identity);
    let (large, of_large) = of(20, FeatureMap::Identity);
    for (fit, of_large) in fits.iter().zip(&of_large) {
        assert!((fit.error - of_large.error).abs() < 1e-9);
    }
    let logits = |model: &CausalLm<B>| model.logits(model.features(text.clone()));
    assert_close(
        "logits",
        values(logits(&large)),
        values(logits(&small)),
        1e-9,
    );

    // C of the first head has 20 rows behind those of x and B, of which the last 8 are zeros.
    let rows = 48 + 4 * 20 + 12;
    let of_c = |weight: Tensor<B, 2>| values(weight.narrow(0, rows, 8)).1;
    let weight = mamba(&large, 0).in_proj.weight.val();
    assert!(of_c(weight).iter().all(|value| *value == 0.0));
    let mut network = CausalLm::<Autodiff<B>>::from_inner(large);
    let Mixer::DiscreteMamba2(mixer) = &mut network.backbone.layers[0].mixer else {
        panic!("a mixer");
    };
    mixer.in_proj.weight = Param::from_tensor(mixer.in_proj.weight.val());
    let u = taught.1.backbone.embedding.forward(text.clone());
    let gradients = mixer
        .forward(Tensor::from_inner(u))
        .powi_scalar(2)
        .sum()
        .backward();
    let gradient = mixer
        .in_proj
        .weight
        .val()
        .grad(&gradients)
        .expect("a gradient");
    assert!(of_c(gradient).iter().all(|slope| *slope != 0.0));

    for feature_map in [FeatureMap::Exp, FeatureMap::Softmax] {
        let (_, fits) = of(12, feature_map);
        let is_fitted = |fit: &model::Fit| (0.0..1.0).contains(&fit.error);
        assert!(fits.iter().all(is_fitted), "{feature_map:?}: {fits:?}");
    }
}

/// The output projection's bias is added once where attention stands beside the mixer.
#[test]
fn a_bias_of_the_output_is_added_once() {
    let taught = teacher("llama-bias");
    let of_teacher = attention(&taught.0);
    let window = AttentionConfig {
        window: Some(Window {
            window: 4,
            sinks: 1,
        }),
        ..of_teacher.clone()
    };
    let one_head = AttentionConfig {
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: Some(of_teacher.head_dim(48)),
        ..of_teacher
    };
    for (attention, heads) in [(window, vec![]), (one_head, vec![2])] {
        let mixer = MixerConfig::BesideAttention(BesideAttentionConfig {
            ssm: options(&taught.0),
            attention: Some(attention),
            heads,
            joined: Joined::Sum,
        });
        let (student, _) = student(&taught, mixer, Initialisation::Copy, &[]);
        let layers = student.backbone.layers.iter();
        for (own, theirs) in layers.zip(&taught.1.backbone.layers) {
            let (Mixer::BesideAttention(both), Mixer::Attention(theirs)) =
                (&own.mixer, &theirs.mixer)
            else {
                panic!("other mixers");
            };
            let attention = both.attention.as_ref().expect("attention");
            let bias = |linear: &Linear<B>| values(linear.bias.as_ref().expect("a bias").val()).1;
            assert!(bias(&theirs.dense).iter().any(|value| *value != 0.0));
            assert_eq!(bias(&both.ssm.out_proj), bias(&theirs.dense));
            assert!(bias(&attention.dense).iter().all(|value| *value == 0.0));
        }
    }
}

/// The output projection is where the gradient of the squared distance on the text, with the ridge, is zero; and one
/// channel of B and C holds a constant.
#[test]
fn ridge_solves_its_equations() {
    let taught = teacher("teacher-llama");
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

/// Random text for a teacher with so many ids, `[32, 40]`.
fn random_text(vocabulary: usize, seed: u64) -> Tensor<B, 2, Int> {
    let mut state = seed;
    let ids = (0..32 * 40).map(|_| {
        // Knuth's MMIX generator, of which the high bits are good.
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 33) % vocabulary as u64) as i64
    });
    let data = burn::tensor::TensorData::new(ids.collect::<Vec<_>>(), [32, 40]);
    let device = Default::default();
    Tensor::<B, 2, Int>::from_data(data, &device)
}

/// How far each layer's output is from the teacher's where every layer reads what its own network gives: the root of
/// the mean over tokens of the squares of what differs, each token's over the teacher's own.
fn drift(taught: &CausalLm<B>, student: &CausalLm<B>, text: &Tensor<B, 2, Int>) -> Vec<f64> {
    let states = |model: &CausalLm<B>| model.forward(text.clone(), Taps::all()).hidden_states;
    let both = states(student).into_iter().zip(states(taught)).skip(1);
    let of_layer = |(own, theirs): (Tensor<B, 3>, Tensor<B, 3>)| {
        let squares = |x: Tensor<B, 3>| x.powi_scalar(2).sum_dim(2);
        let share = squares(own - theirs.clone()) / squares(theirs);
        share.mean().into_scalar().sqrt()
    };
    both.map(of_layer).collect()
}

/// On the student's own stream and on other text, a start that is fitted there is nearer to the teacher than those
/// that are fitted to what the teacher reads.
#[test]
fn fits_on_the_own_stream_drift_least() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher(name);
        let config = &taught.0;
        let text = |seed| random_text(config.network().vocab_size, seed);
        let fitted = [text(1), text(2)];
        let drift_of = |how: Initialisation| {
            let (student, fits) = student(&taught, options(config).into(), how, &fitted);
            assert_eq!(fits.len(), student.backbone.layers.len(), "{name}");
            let errors: Vec<f64> = fits.iter().map(|fit| fit.error).collect();
            assert!(
                errors.iter().all(|error| (0.0..1.1).contains(error)),
                "{name}: {errors:?}"
            );
            let drift = drift(&taught.1, &student, &text(3));
            println!("{name}, {how:?}: {drift:?}");
            drift[drift.len() - 1]
        };
        let calibrated = drift_of(Initialisation::Calibrated);
        let ridge = drift_of(Initialisation::Ridge);
        let fitted = drift_of(Initialisation::Fitted);
        assert!(ridge < calibrated, "{name}: {ridge}, {calibrated}");
        assert!(fitted < ridge, "{name}: {fitted}, {ridge}");
    }
}

/// Even sizes of B and C change nothing that a calibrated copy gives.
#[test]
fn an_even_copy_gives_the_same() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher(name);
        let text = random_text(taught.0.network().vocab_size, 1);
        let text = text.narrow(0, 0, 2);
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

/// In the first layer, where both start from the same, steps of Adam leave nothing worse on what is held out; and B
/// and C have the same size there.
#[test]
fn a_tuned_layer_is_no_worse_and_even() {
    let taught = teacher("teacher-llama");
    let text = random_text(taught.0.network().vocab_size, 1);
    let text = text.narrow(0, 0, 8).narrow(1, 0, 16);
    let start = |how: Initialisation| {
        let (student, fits) = student(&taught, options(&taught.0).into(), how, from_ref(&text));
        (student, fits[0].error)
    };
    let (student, fitted) = start(Initialisation::Fitted);
    let (_, tuned) = start(Initialisation::Tuned);
    assert!(tuned <= fitted, "{tuned}, {fitted}");

    let states = taught
        .1
        .forward(text.narrow(0, 0, 7), Taps::all())
        .hidden_states;
    let block = &taught.1.backbone.layers[0];
    let u = block.input_layernorm.forward(states[0].clone());
    let parts = mamba(&student, 0).transfer_parts(u).expect("its factors");
    // The constant channel, which is even by itself, is left out of the squares of B and C.
    let mixer = mamba(&student, 0);
    let bias = values(mixer.conv1d.bias.as_ref().expect("a bias").val()).1;
    let (n, h, d) = (mixer.config().d_state, mixer.config().n_v_heads, 48);
    let squares = |x: Tensor<B, 4>, first: usize| -> Vec<f64> {
        let tokens = (x.dims()[0] * x.dims()[1]) as f64;
        let all = x.powi_scalar(2).sum_dim(0).sum_dim(1).sum_dim(3);
        let heads = values(all).1.into_iter().enumerate();
        let constant = |head: usize| bias[first + head * n + n / 2 - 1].powi(2);
        heads
            .map(|(head, all)| all / tokens - constant(head))
            .collect()
    };
    let both = squares(parts.b, d)
        .into_iter()
        .zip(squares(parts.c, d + h * n));
    for (b, c) in both {
        assert!(b > 0.0 && (b / c - 1.0).abs() < 1e-6, "{b}, {c}");
    }
}

/// In the first layer both streams are the same. There the output projection is where the gradient of the squared
/// distance, each token's over the squares of the teacher's stream, and of a ridge around the copy is zero: with one
/// of the ridges that are tried.
#[test]
fn a_fitted_projection_solves_its_equations() {
    let taught = teacher("teacher-llama");
    let how = Initialisation::Fitted;
    // The fit is kept where it is nearer on held-out text: not for every text of random tokens.
    let is_fitted = |student: &CausalLm<B>| {
        let Mixer::Attention(attention) = &taught.1.backbone.layers[0].mixer else {
            panic!("a teacher has attention");
        };
        let change = mamba(student, 0).out_proj.weight.val() - attention.dense.weight.val();
        change.abs().max().into_scalar() > 1e-3
    };
    let fits = [5, 6, 4, 3, 2, 1].into_iter().map(|seed| {
        let text = random_text(taught.0.network().vocab_size, seed);
        let (student, _) = student(&taught, options(&taught.0).into(), how, from_ref(&text));
        (student, text)
    });
    let mut fits = fits.filter(|(student, _)| is_fitted(student));
    let (student, text) = fits.next().expect("a projection that was fitted");
    // One sequence of eight is held out.
    let text = text.narrow(0, 0, 28);
    let outputs = taught.1.forward(text, Taps::all());
    let block = &taught.1.backbone.layers[0];
    let x = outputs.hidden_states[0].clone();
    let u = block.input_layernorm.forward(x.clone());
    let wanted = outputs.mixer_outputs[0].clone();
    let d = wanted.dims()[2];
    let root = (x + wanted.clone())
        .powi_scalar(2)
        .mean_dim(2)
        .sqrt()
        .recip();
    let rows = |x: Tensor<B, 3>| -> Tensor<B, 2> { (x * root.clone()).flatten(0, 1) };

    let mixer = mamba(&student, 0);
    let lacking = rows(wanted.clone()) - rows(mixer.forward(u.clone()));
    let mut open = mixer.clone();
    open.out_proj.weight = Param::from_tensor(Tensor::eye(d, &u.device()));
    let y = rows(open.forward(u));
    let Mixer::Attention(attention) = &block.mixer else {
        panic!("a teacher has attention");
    };
    let change = mixer.out_proj.weight.val() - attention.dense.weight.val();
    let change = change.transpose();
    let largest = |x: Tensor<B, 2>| x.abs().max().into_scalar();
    assert!(largest(change.clone()) > 1e-3, "nothing was fitted");
    let gram = y.clone().transpose().matmul(y.clone());
    let mean = (gram * Tensor::eye(d, &y.device())).sum().into_scalar() / d as f64;
    let right = y.clone().transpose().matmul(rows(wanted));
    let gradient = y.transpose().matmul(lacking);
    let ridges = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
    let left = ridges.map(|ridge| largest(gradient.clone() - change.clone() * (ridge * mean)));
    // Tokens count by a little less than the inverse of their squares: by 1e-6 of all.
    let least = left.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 1e-4 * largest(right), "{left:?}");
}

/// Twice the same, and of text that says nothing of most directions nothing that is no number: one token again and
/// again, a single sequence, values that are zero.
#[test]
fn fits_of_little_text_are_finite_and_the_same() {
    let mut taught = teacher("teacher-llama");
    let numbers = |model: &CausalLm<B>| {
        let mixer = mamba(model, 1);
        let weights = [&mixer.in_proj.weight, &mixer.out_proj.weight];
        let mut all: Vec<f64> = weights
            .iter()
            .flat_map(|weight| values(weight.val()).1)
            .collect();
        all.extend(values(mixer.d.val()).1);
        all
    };
    let start = |taught: &(ModelConfig, CausalLm<B>), text: &Tensor<B, 2, Int>| {
        let mixer = options(&taught.0).into();
        let (student, fits) = student(taught, mixer, Initialisation::Tuned, from_ref(text));
        assert!(fits.iter().all(|fit| fit.error.is_finite()), "{fits:?}");
        numbers(&student)
    };
    let text = random_text(taught.0.network().vocab_size, 1);
    let one_token = text.narrow(0, 0, 1).narrow(1, 0, 12).zeros_like();
    let first = start(&taught, &one_token);
    assert!(first.iter().all(|number| number.is_finite()));
    assert_eq!(first, start(&taught, &one_token));

    for layer in &mut taught.1.backbone.layers {
        let Mixer::Attention(attention) = &mut layer.mixer else {
            panic!("a teacher has attention");
        };
        let weight = attention.v_proj.weight.val();
        attention.v_proj.weight = Param::from_tensor(weight.zeros_like());
    }
    let nothing = start(&taught, &one_token);
    assert!(nothing.iter().all(|number| number.is_finite()));
}

/// Norms of queries and keys, and a window of attention beside the mixer.
#[test]
fn every_mixer_is_fitted() {
    let normed = normed_teacher();
    let taught = teacher("teacher-llama");
    let window = MixerConfig::BesideAttention(BesideAttentionConfig {
        ssm: options(&taught.0),
        attention: Some(AttentionConfig {
            window: Some(Window {
                window: 4,
                sinks: 1,
            }),
            ..attention(&taught.0)
        }),
        heads: vec![],
        joined: Joined::Sum,
    });
    let alone = options(&normed.0).into();
    for (taught, mixer) in [(&normed, alone), (&taught, window)] {
        let text = |seed| random_text(taught.0.network().vocab_size, seed);
        let last = |how: Initialisation| {
            let (student, _) = student(taught, mixer.clone(), how, &[text(1), text(2)]);
            let drift = drift(&taught.1, &student, &text(3));
            drift[drift.len() - 1]
        };
        let (copied, fitted) = (last(Initialisation::Copy), last(Initialisation::Fitted));
        assert!(fitted < copied, "{}: {fitted}, {copied}", mixer.kind());
    }
}

/// Before each piece of text, each decay that is tried, and each fit.
#[test]
fn a_fit_is_stopped_on_request() {
    let taught = teacher("teacher-llama");
    let text = random_text(taught.0.network().vocab_size, 1);
    let network = taught.0.network();
    let how = Initialisation::Fitted;
    let mixer = how.options_of(
        options(&taught.0).into(),
        &network.mixers[0],
        network.d_model,
    );
    let config = taught.0.student(&mixer, &[]).expect("a student");
    let stopped_at = |at: usize| {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > at
        };
        let mut student = CausalLm::<B>::init(&config, 5, &Default::default());
        let result = how.apply(&mut student, &taught.1, from_ref(&text), &stop);
        (asked.get(), result)
    };
    let (all, whole) = stopped_at(usize::MAX);
    assert!(whole.is_ok(), "{whole:?}");
    for at in [0, all / 2, all - 1] {
        assert_eq!(stopped_at(at), (at + 1, Err(InitError::Stopped)));
    }
}

/// What has no place in the student is an error that says which option gives it one.
#[test]
fn what_does_not_fit_is_said() {
    let taught = teacher("teacher-tiny");
    let refused = |mixer: DiscreteMamba2Config| {
        let config = taught.0.student(&mixer.into(), &[]).expect("a student");
        let mut student = CausalLm::<B>::init(&config, 5, &Default::default());
        let refused = Initialisation::Copy.apply(&mut student, &taught.1, &[], &|| false);
        refused.expect_err("it does not fit").to_string()
    };
    let fits = options(&taught.0);
    let without = refused(DiscreteMamba2Config {
        bias: false,
        z_bias: true,
        ..fits.clone()
    });
    assert!(without.contains("student.bias = true"), "{without}");
    let small = refused(DiscreteMamba2Config { d_state: 4, ..fits });
    assert!(small.contains("student.d_state = 12"), "{small}");
    let normed = normed_teacher();
    let mixer = DiscreteMamba2Config {
        d_state: 20,
        ..options(&normed.0)
    };
    let config = normed.0.student(&mixer.into(), &[]).expect("a student");
    let student = CausalLm::<B>::init(&config, 5, &Default::default());
    let refused = Initialisation::Copy.check(&student, &normed.1);
    let refused = refused.expect_err("it does not fit").to_string();
    assert!(refused.contains("student.d_state = 12"), "{refused}");
}

/// Before anything is read, so before a run begins.
#[test]
fn what_cannot_be_fitted_is_said() {
    let refused = |taught: &(ModelConfig, CausalLm<B>), how: Initialisation, mixer: MixerConfig| {
        let network = taught.0.network();
        let mixer = how.options_of(mixer, &network.mixers[0], network.d_model);
        let config = taught.0.student(&mixer, &[]).expect("a student");
        let student = CausalLm::<B>::init(&config, 5, &Default::default());
        let refused = how.check(&student, &taught.1);
        refused.expect_err("it does not fit").to_string()
    };
    let taught = teacher("teacher-llama");
    for how in [Initialisation::Calibrated, Initialisation::Ridge] {
        let mixer = BesideAttentionConfig {
            ssm: options(&taught.0),
            attention: Some(attention(&taught.0)),
            heads: vec![],
            joined: Joined::Adapter,
        };
        let adapter = refused(&taught, how, mixer.into());
        assert!(adapter.contains("student.joined = sum"), "{adapter}");
    }
    let ridge = |taught: &(ModelConfig, CausalLm<B>), mixer: DiscreteMamba2Config| {
        refused(taught, Initialisation::Ridge, mixer.into())
    };
    let mixer = DiscreteMamba2Config {
        conv_bias: false,
        ..options(&taught.0)
    };
    let without = ridge(&taught, mixer);
    assert!(without.contains("student.conv_bias = true"), "{without}");
    // The same whether the student has norms or not.
    let normed = normed_teacher();
    for bc_norm in [None, Some(1e-6)] {
        let mixer = DiscreteMamba2Config {
            bc_norm,
            ..options(&normed.0)
        };
        let norms = ridge(&normed, mixer);
        assert!(norms.contains("student.init = calibrated"), "{norms}");
    }
}

/// By its layer.
#[test]
fn a_start_that_is_not_finite_is_refused() {
    let mut taught = teacher("teacher-llama");
    let config = taught.0.student(&options(&taught.0).into(), &[]);
    let mut student = CausalLm::<B>::init(&config.expect("a student"), 5, &Default::default());
    let Mixer::Attention(attention) = &mut taught.1.backbone.layers[1].mixer else {
        panic!("a teacher has attention");
    };
    let weight = attention.dense.weight.val();
    attention.dense.weight = Param::from_tensor(weight.mul_scalar(f64::NAN));
    let refused = Initialisation::Copy.apply(&mut student, &taught.1, &[], &|| false);
    assert!(
        matches!(refused, Err(InitError::Layer { layer: 1, .. })),
        "{refused:?}"
    );
}

/// Whenever it is asked for, up to the last layer of the last pass.
#[test]
fn a_start_is_stopped_on_request() {
    let taught = teacher("teacher-llama");
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    let network = taught.0.network();
    for (how, passes) in [(Initialisation::Calibrated, 1), (Initialisation::Ridge, 2)] {
        let mixer = options(&taught.0).into();
        let mixer = how.options_of(mixer, &network.mixers[0], network.d_model);
        let config = taught.0.student(&mixer, &[]).expect("a student");
        // How often it was asked, and what came of it.
        let stopped_at = |at: usize| {
            let asked = Cell::new(0);
            let stop = || {
                asked.set(asked.get() + 1);
                asked.get() > at
            };
            let mut student = CausalLm::<B>::init(&config, 5, &Default::default());
            let result = how.apply(&mut student, &taught.1, from_ref(&text), &stop);
            (asked.get(), result)
        };
        let (all, whole) = stopped_at(usize::MAX);
        assert!(whole.is_ok(), "{whole:?}");
        // One sequence at a time for the distances that heads look back, and all of them in each pass after.
        let sequences = text.dims()[0];
        assert_eq!(all, (sequences + passes) * network.mixers.len());
        for at in [0, all / 2, all - 1] {
            assert_eq!(stopped_at(at), (at + 1, Err(InitError::Stopped)));
        }
    }
}
