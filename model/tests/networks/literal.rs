//! Families without recorded vectors, Qwen3 and Mistral, against their definition written out: plain loops in
//! 64 bits over the numbers of a saved folder, which share no code with the networks.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, LlamaConfig, Taps};
use serde_json::{Value, json};
use tests::networks::*;
use tests::{Goldens, Values, assert_close};

use super::block_orders::random;

/// Tokens of each of two sequences.
const L: usize = 13;

/// A folder's tensors, by name.
struct Weights(HashMap<String, Values>);

/// What the definition gives for one sequence.
#[derive(Default)]
struct Expected {
    /// `[l, vocabulary]`.
    logits: Vec<f64>,
    /// `[h, l, l]` of each layer.
    attentions: Vec<Vec<f64>>,
}

impl Weights {
    fn of(folder: &Path) -> Self {
        let file = Goldens::open_path(&folder.join("model.safetensors"));
        let names = file.keys().into_iter();
        Self(names.map(|name| (name.clone(), file.f64(&name))).collect())
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.0[name].1
    }

    /// `W x + b`, with `b` where there is one.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let rows = self.get(&weight).chunks(x.len());
        let mut y: Vec<f64> = rows
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect();
        if let Some((_, bias)) = self.0.get(&bias) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    /// `w x / sqrt(mean of squares + epsilon)`.
    fn norm(&self, name: &str, x: &[f64], epsilon: f64) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + epsilon).sqrt();
        let weight = self.get(&format!("{name}.weight")).iter();
        weight.zip(x).map(|(w, x)| w * x * scale).collect()
    }
}

/// The options as they stand in the file.
struct Options {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    theta: f64,
    epsilon: f64,
    layers: usize,
    has_head_norms: bool,
    /// Of each layer.
    windows: Vec<usize>,
}

/// Pairs `(i, i + p / 2)` turned by the position.
fn turn(head: &mut [f64], position: usize, theta: f64) {
    let (p, half) = (head.len(), head.len() / 2);
    for i in 0..half {
        let angle = position as f64 / theta.powf(2.0 * i as f64 / p as f64);
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * angle.cos() - b * angle.sin();
        head[i + half] = b * angle.cos() + a * angle.sin();
    }
}

fn defined(weights: &Weights, options: &Options, ids: &[usize]) -> Expected {
    let Options {
        heads,
        kv_heads,
        head_dim: p,
        theta,
        epsilon,
        ..
    } = *options;
    let embedding = weights.get("model.embed_tokens.weight");
    let width = weights.get("model.norm.weight").len();
    let row = |id: &usize| embedding[id * width..(id + 1) * width].to_vec();
    let mut x: Vec<Vec<f64>> = ids.iter().map(row).collect();
    let l = ids.len();
    let mut expected = Expected::default();
    for (layer, window) in options.windows.iter().enumerate().take(options.layers) {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let project = |part: &str, x: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let normed = x
                .iter()
                .map(|x| weights.norm(&name("input_layernorm"), x, epsilon));
            normed
                .map(|x| weights.linear(&name(&format!("self_attn.{part}")), &x))
                .collect()
        };
        let mut q = project("q_proj", &x);
        let mut k = project("k_proj", &x);
        let v = project("v_proj", &x);
        for (rows, part) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
            for (position, row) in rows.iter_mut().enumerate() {
                for head in row.chunks_mut(p) {
                    if options.has_head_norms {
                        let name = name(&format!("self_attn.{part}"));
                        let normed = weights.norm(&name, head, epsilon);
                        head.copy_from_slice(&normed);
                    }
                    turn(head, position, theta);
                }
            }
        }
        let mut attention = vec![0.0; heads * l * l];
        for i in 0..l {
            let mut context = vec![0.0; heads * p];
            for head in 0..heads {
                let group = head / (heads / kv_heads) * p;
                let seen = (i + 1).saturating_sub(*window)..i + 1;
                let score = |j: usize| {
                    let dot = |d: usize| q[i][head * p + d] * k[j][group + d];
                    ((0..p).map(dot).sum::<f64>() / (p as f64).sqrt()).exp()
                };
                let total: f64 = seen.clone().map(score).sum();
                for j in seen {
                    let weight = score(j) / total;
                    attention[(head * l + i) * l + j] = weight;
                    for d in 0..p {
                        context[head * p + d] += weight * v[j][group + d];
                    }
                }
            }
            let mixed = weights.linear(&name("self_attn.o_proj"), &context);
            x[i].iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
            let normed = weights.norm(&name("post_attention_layernorm"), &x[i], epsilon);
            let gate = weights.linear(&name("mlp.gate_proj"), &normed);
            let up = weights.linear(&name("mlp.up_proj"), &normed);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let hidden: Vec<f64> = gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect();
            let mixed = weights.linear(&name("mlp.down_proj"), &hidden);
            x[i].iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
        }
        expected.attentions.push(attention);
    }
    for x in &x {
        let normed = weights.norm("model.norm", x, epsilon);
        let head = if weights.0.contains_key("lm_head.weight") {
            "lm_head"
        } else {
            "model.embed_tokens"
        };
        expected.logits.extend(weights.linear(head, &normed));
    }
    expected
}

/// Small files, with what is theirs alone.
fn cases() -> [(&'static str, Value, Vec<usize>); 5] {
    let all = usize::MAX;
    let small = |model_type: &str, more: Value| {
        let mut root = json!({
            "model_type": model_type,
            "vocab_size": 21,
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-4,
            "rope_theta": 300.0,
            "head_dim": 6,
        });
        let members = root.as_object_mut().expect("an object");
        members.extend(more.as_object().expect("an object").clone());
        root
    };
    [
        ("Qwen3", small("qwen3", json!({})), vec![all; 3]),
        (
            "Qwen3, tied, with biases and a window",
            small(
                "qwen3",
                json!({
                    "attention_bias": true,
                    "tie_word_embeddings": true,
                    "use_sliding_window": true,
                    "sliding_window": 5,
                    "max_window_layers": 2,
                }),
            ),
            vec![all, all, 5],
        ),
        (
            "Mistral",
            small("mistral", json!({ "sliding_window": 4 })),
            vec![4; 3],
        ),
        (
            "Mistral without a window",
            small(
                "mistral",
                json!({ "sliding_window": null, "head_dim": null, "num_attention_heads": 2 }),
            ),
            vec![all; 3],
        ),
        (
            "Qwen2 with a window",
            small(
                "qwen2",
                json!({ "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1 }),
            ),
            vec![all, 3, 3],
        ),
    ]
}

/// The whole sequence, in pieces, and token by token, of a folder that was written and read.
fn as_defined<B: KernelBackend>(tolerance: f64) {
    let device = Default::default();
    for (name, file, windows) in cases() {
        let config = LlamaConfig::from_json(&file.to_string()).expect(name);
        let folder = tempfile::tempdir().expect("a folder");
        let drawn = random::<Exact>(&(&config).into());
        model::save(&config, &drawn, folder.path()).expect("saved");
        let (_, model) = model::load_any::<B>(folder.path(), &device).expect(name);
        let options = Options {
            heads: file["num_attention_heads"].as_u64().expect("heads") as usize,
            kv_heads: 2,
            head_dim: 6,
            theta: 300.0,
            epsilon: 1e-4,
            layers: 3,
            has_head_norms: name.starts_with("Qwen3"),
            windows,
        };
        let weights = Weights::of(folder.path());
        let ids = |row: usize| (0..L).map(move |i| (5 * i + 3 * row + i * i) % 21);
        let expected = [0, 1].map(|row| {
            let ids: Vec<usize> = ids(row).collect();
            defined(&weights, &options, &ids)
        });
        let both = |of: fn(&Expected) -> &[f64]| expected.iter().flat_map(of).copied().collect();
        let logits: Values = (vec![2, L, 21], both(|expected| &expected.logits));

        let numbers: Vec<i32> = [0, 1]
            .into_iter()
            .flat_map(ids)
            .map(|id| id as i32)
            .collect();
        let tokens: Tensor<B, 2, Int> =
            Tensor::from_data(TensorData::new(numbers, [2, L]), &device);
        let fused = model.clone().fuse_projections();
        for model in [&model, &fused] {
            let outputs = model.forward(tokens.clone(), Taps::all());
            let found = values(outputs.logits.expect("asked for"));
            assert_close(name, found, logits.clone(), tolerance);
            for (layer, matrix) in outputs.mixing_matrices.into_iter().enumerate() {
                let weights = expected
                    .iter()
                    .flat_map(|row| row.attentions[layer].clone());
                let expected = (vec![2, options.heads, L, L], weights.collect());
                assert_close(name, values(matrix), expected, tolerance);
            }
            let features = model.features(tokens.clone());
            assert_close(
                name,
                values(model.logits(features)),
                logits.clone(),
                tolerance,
            );
        }
        for split in [vec![L], vec![1; L], vec![3, 1, 5, 1, 1, 2], vec![L - 1, 1]] {
            let found = in_pieces(&model, &tokens, &split, false);
            let name = format!("{name}: {split:?}");
            assert_close(&name, found, logits.clone(), tolerance);
            let found = in_pieces(&model, &tokens, &split, true);
            assert_close(&format!("{name}, steps"), found, logits.clone(), tolerance);
        }
    }
}

/// The logits of pieces; with `steps`, those of one token are steps.
fn in_pieces<B: KernelBackend>(
    model: &CausalLm<B>,
    tokens: &Tensor<B, 2, Int>,
    split: &[usize],
    steps: bool,
) -> Values {
    let mut state = model.new_state(2, &Default::default());
    let mut start = 0;
    let pieces = split.iter().map(|n| {
        let piece = tokens.clone().narrow(1, start, *n);
        start += n;
        if steps && *n == 1 {
            let next = piece.reshape([2]);
            model.step(next, &mut state).unsqueeze_dim(1)
        } else {
            model.prefill_all(piece, &mut state)
        }
    });
    let logits: Tensor<B, 3> = Tensor::cat(pieces.collect(), 1);
    values(logits)
}

on_both! {
    as_defined(1e-11, 2e-4);
}

/// A windowed cache grows until the window is full, and not beyond. A state that is saved as tensors and read again
/// decodes as before.
#[test]
fn windowed_states_do_not_grow() {
    let device = Default::default();
    for (name, file, windows) in cases() {
        let config = LlamaConfig::from_json(&file.to_string()).expect(name);
        let model = random::<Fast>(&(&config).into());
        let next = |i: usize| Tensor::<Fast, 1, Int>::from_data([(7 * i % 21) as i32], &device);
        let mut state = model.new_state(1, &device);
        let network = model::NetworkConfig::from(&config);
        let layers = || network.mixers.iter().zip(&windows);
        for i in 0..10 {
            model.step(next(i), &mut state);
            // Keys and values of 2 heads of 6, f32.
            let kept = layers().map(|(_, window)| (i + 1).min(*window));
            assert_eq!(state.bytes(), 96 * kept.sum::<usize>(), "{name}");
            let said = layers().map(|(mixer, window)| {
                let size = mixer.state_size(network.d_model);
                assert_eq!(size.per_token == 0, *window != usize::MAX, "{name}");
                size.bytes(i + 1)
            });
            assert!(state.bytes() <= said.sum::<usize>(), "{name}");
        }
        let mut tensors: HashMap<_, _> = state.to_tensors().expect("a state").into_iter().collect();
        let mut again = model
            .state_from_tensors(10, |name| tensors.remove(name), &device)
            .expect(name);
        assert!(tensors.is_empty());
        for i in 10..13 {
            let [found, expected] =
                [&mut again, &mut state].map(|state| values(model.step(next(i), state)));
            assert_eq!(found, expected, "{name}");
        }
    }
}
