//! What every student must do, whatever the backend.

use std::path::Path;

use super::decoding::*;
use super::*;
use crate::{Goldens, Values, assert_close, cases, name_of};
use burn::tensor::{Int, Tensor, TensorData};
use kernels::{KernelBackend, TrainBackend};
use model::{
    LlamaMambaConfig, Mixer, MixerRotary, MixerState, PhiMamba, State, Taps, TokenMixer, Turned,
    rotary_frequencies,
};
use serde_json::{Value, json};

/// Runs `check` on every student folder: its name, its network, and what is expected of it.
fn on_every_student<B: KernelBackend>(check: impl Fn(&str, &PhiMamba<B>, &Goldens)) {
    for folder in cases("student-") {
        let name = name_of(&folder);
        let (_, model) = model::load_any(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let open = || Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &open());
        if let Some(model) = turning_b_and_c(&folder) {
            let name = format!("{name} with C and B turned");
            check(&name, &model, &open().of_variant("cb."));
        }
    }
}

/// The student in `folder` with C and B turned, where it is published with x and B turned: the same weights, for
/// which the vectors have keys that begin with `cb`.
fn turning_b_and_c<B: KernelBackend>(folder: &Path) -> Option<PhiMamba<B>> {
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = false;
    for layer in config.get_mut("layers")?.as_array_mut()? {
        if let Some(turned) = layer.pointer_mut("/ssm/rotary/applied_to") {
            *turned = json!(["C", "B"]);
            found = true;
        }
    }
    if !found {
        return None;
    }
    let changed = tempfile::tempdir().expect("a folder");
    let weights = "model.safetensors";
    std::fs::copy(folder.join(weights), changed.path().join(weights)).expect("a copy");
    std::fs::write(changed.path().join("config.json"), config.to_string()).expect("a file");
    let (_, model) = model::load_any(changed.path(), &Default::default()).expect("a student");
    Some(model)
}

/// Everything that [`Taps`] can ask for is as recorded.
pub fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::all());
        let matches = |key: &str, x: Tensor<B, 3>| assert_golden(case, goldens, key, x, tolerance);
        matches("logits", outputs.logits.expect("asked for"));
        let layers = model.backbone.layers.len();
        assert_parts(case, goldens, model, &outputs.hidden_states, tolerance);
        assert_eq!(outputs.hidden_states.len(), layers + 1);
        for (i, x) in outputs.hidden_states.into_iter().enumerate() {
            matches(&format!("hidden_states.{i}"), x);
        }
        assert_eq!(outputs.mixer_outputs.len(), layers);
        for (i, x) in outputs.mixer_outputs.into_iter().enumerate() {
            matches(&format!("mixer_outputs.{i}"), x);
        }
        assert_eq!(outputs.mixing_matrices.len(), layers);
        for (i, matrix) in outputs.mixing_matrices.into_iter().enumerate() {
            let key = format!("transfer_matrices.{i}");
            // The published code cannot make this matrix where heads share B and C.
            if goldens.has(&key) {
                assert_golden(case, goldens, &key, matrix, tolerance);
            }
        }
        // The untapped path is other code: it must agree with the tapped one.
        matches("logits", model.logits(model.features(ids)));
    });
}

/// The state `[b, h, p, n]` of a mixer that turns C and B, after `position` tokens, with B as it was recorded: turned
/// to its own position, where the mixer keeps it turned to its distance from the latest.
fn recorded<B: KernelBackend>(
    ssm: Tensor<B, 4>,
    rotary: &MixerRotary,
    position: usize,
) -> Tensor<B, 4> {
    let frequencies = rotary_frequencies(rotary.dim, rotary.theta, rotary.scaling);
    let angles = frequencies.iter().map(|f| (position - 1) as f64 * f);
    let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
    let angles = |values: Vec<f64>| tensor::<B, 2>((vec![1, values.len()], values), &ssm.device());
    let (cos, sin) = (angles(cos), angles(sin));
    let [b, h, p, n] = ssm.dims();
    kernels::rotary(ssm.reshape([b * h, 1, p, n]), cos, sin).reshape([b, h, p, n])
}

fn assert_state<B: KernelBackend>(
    case: &str,
    goldens: &Goldens,
    prefix: &str,
    model: &PhiMamba<B>,
    state: &State<B>,
    tolerance: f64,
) {
    let layers = state.layers().iter().zip(&model.backbone.layers);
    for (i, (layer, block)) in layers.enumerate() {
        let turns = |rotary: &MixerRotary| rotary.turned == Turned::BAndC;
        let mamba = block.mixer.mamba();
        let rotary = mamba.and_then(|mamba| mamba.config().rotary.clone().filter(turns));
        let states = match layer {
            MixerState::BesideAttention(both) => {
                let attention = both.attention.as_deref();
                std::iter::once(&*both.ssm).chain(attention).collect()
            }
            alone => vec![alone],
        };
        let matches = |part: &str, x: Tensor<B, 4>| {
            assert_golden(case, goldens, &format!("{prefix}.{part}.{i}"), x, tolerance);
        };
        for layer in states {
            match layer {
                MixerState::DiscreteMamba2(layer) => {
                    // A variant's were recorded only where its inputs are those of the other.
                    if i == 0 || !goldens.is_variant() {
                        let key = format!("{prefix}.conv.{i}");
                        assert_golden(case, goldens, &key, layer.conv.clone(), tolerance);
                    }
                    let ssm = match &rotary {
                        Some(rotary) => recorded(layer.ssm.clone(), rotary, state.position),
                        None => layer.ssm.clone(),
                    };
                    matches("ssm", ssm);
                }
                MixerState::Attention(cache) => {
                    let (keys, values) = cache.keys_and_values().expect("tokens were read");
                    matches("k", keys.swap_dims(1, 2));
                    matches("v", values.swap_dims(1, 2));
                }
                MixerState::BesideAttention(_) => panic!("{case}: layer {i} has two of two mixers"),
                MixerState::Toeplitz(_) | MixerState::LowRank(_) => {
                    panic!("{case}: layer {i} has a mixer of which nothing was recorded")
                }
            }
        }
    }
}

/// What each mixer of a layer with two gives, as recorded.
fn assert_parts<B: KernelBackend>(
    case: &str,
    goldens: &Goldens,
    model: &PhiMamba<B>,
    hidden_states: &[Tensor<B, 3>],
    tolerance: f64,
) {
    for (i, layer) in model.backbone.layers.iter().enumerate() {
        let Mixer::BesideAttention(both) = &layer.mixer else {
            continue;
        };
        let u = layer.input_layernorm.forward(hidden_states[i].clone());
        let key = |part: &str| format!("{part}.{i}");
        let ssm = both.ssm.forward(u.clone());
        assert_golden(case, goldens, &key("ssm_outputs"), ssm, tolerance);
        if let Some(attention) = &both.attention {
            let output = attention.forward(u.clone());
            assert_golden(case, goldens, &key("attn_outputs"), output, tolerance);
            let matrix = attention.mixing_matrix(u);
            assert_golden(case, goldens, &key("attentions"), matrix, tolerance);
        }
    }
}

/// Where a loss was recorded: the mean cross-entropy of the next tokens, and every parameter's gradient, whole or by
/// its norm.
pub fn next_tokens<B: TrainBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| {
        if !goldens.has("loss") {
            return;
        }
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let [b, l] = ids.dims();
        let logits = model.logits(model.features(ids.clone()));
        let v = logits.dims()[2];
        let logits = logits.narrow(1, 0, l - 1).reshape([b * (l - 1), v]);
        let next = ids.narrow(1, 1, l - 1).reshape([b * (l - 1), 1]);
        let chosen = burn::tensor::activation::log_softmax(logits, 1).gather(1, next);
        let loss = chosen.mean().neg();
        assert_golden(case, goldens, "loss", loss.clone(), tolerance);

        let found = gradients::<B>(model, &loss.backward());
        let parameters = model::named_parameters(model, LlamaMambaConfig::LAYOUT);
        for parameter in parameters {
            let gradient = found.iter().find(|(id, _)| *id == parameter.id);
            let (_, gradient) = gradient.unwrap_or_else(|| panic!("{}", parameter.name));
            let key = format!("grad.{}", parameter.name);
            if goldens.has(&key) {
                let name = format!("{case}: {key}");
                assert_close(&name, gradient.clone(), goldens.f64(&key), tolerance);
            }
            let norm = gradient.1.iter().map(|v| v * v).sum::<f64>().sqrt();
            let key = format!("grad_norm.{}", parameter.name);
            let name = format!("{case}: {key}");
            assert_close(&name, (vec![1], vec![norm]), goldens.f64(&key), tolerance);
        }
    });
}

/// A prompt, then token by token: logits and states are as recorded.
pub fn decoding<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| {
        if !goldens.has("decode_logits") {
            return;
        }
        let device = Default::default();
        let (shape, _) = goldens.f64("decode_logits");
        let [b, read, _] = shape[..] else {
            panic!("{case}: decode_logits is not [b, l, v]")
        };
        let prompt = 5;
        let ids = ids::<B>(goldens, "input_ids", &device);
        let mut state = model.new_state(b, &device);
        let mut logits = vec![model.prefill_all(ids.clone().narrow(1, 0, prompt), &mut state)];
        assert_state(case, goldens, "prompt_state", model, &state, tolerance);
        let bytes = state.bytes();
        for i in prompt..read {
            let next = ids.clone().narrow(1, i, 1).reshape([b]);
            logits.push(model.step(next, &mut state).unsqueeze_dim(1));
        }
        assert_state(case, goldens, "final_state", model, &state, tolerance);
        let mut layers = model.backbone.layers.iter();
        let grows = |layer: &model::Block<B>| layer.mixer.softmax().is_some();
        if !layers.any(grows) {
            assert_eq!(state.bytes(), bytes, "{case}: the state must not grow");
        }
        assert_eq!(state.position, read);
        let logits: Tensor<B, 3> = Tensor::cat(logits, 1);
        assert_golden(case, goldens, "decode_logits", logits, tolerance);
    });
}

/// The vectors were recorded with padding ids taking part, so the largest of all logits wins.
pub fn greedy<B: KernelBackend>() {
    on_every_student::<B>(|case, model, goldens| {
        if !goldens.is_variant() {
            assert_greedy(case, model, goldens);
        }
    });
}

/// See [`assert_joins`].
pub fn joining<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| assert_joins(case, model, goldens, tolerance));
}

/// See [`assert_eight_bits`].
pub fn eight_bits<B: KernelBackend>() {
    on_every_student::<B>(assert_eight_bits);
}

/// Every split of a sequence into a first and a second piece, and into single tokens, gives the
/// logits and the state of the whole. Pieces shorter than the convolution are among them, and the
/// two sequences of the batch differ.
pub fn splits<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| {
        let device = Default::default();
        // Longer than a chunk of the scan.
        let l = 20;
        let ids = ids::<B>(goldens, "input_ids", &device).narrow(1, 0, l);
        let b = ids.dims()[0];
        let run = |lengths: &[usize]| {
            let mut state = model.new_state(b, &device);
            let mut start = 0;
            let pieces = lengths.iter().map(|n| {
                let piece = ids.clone().narrow(1, start, *n);
                start += n;
                model.prefill_all(piece, &mut state)
            });
            let logits = Tensor::cat(pieces.collect(), 1);
            (values(logits), state)
        };
        let (whole, whole_state) = run(&[l]);
        let mut splits: Vec<Vec<usize>> = (1..l).map(|n| vec![n, l - n]).collect();
        splits.push(vec![1; l]);
        splits.push(vec![2, 1, 3, 1, 5, 8]);
        for split in splits {
            let name = format!("{case}: {split:?}");
            let (pieces, state) = run(&split);
            assert_close(&name, pieces, whole.clone(), tolerance);
            for (layer, expected) in state.layers().iter().zip(whole_state.layers()) {
                for (actual, expected) in parts(layer).into_iter().zip(parts(expected)) {
                    assert_close(&name, actual, expected, tolerance);
                }
            }
        }
    });
}

/// Steps give what the whole sequence gives, whatever happens between them: a copy of the state moves on, tensors of
/// the state are held, several tokens are read at once, the network is changed. Before each of these come as many steps
/// as a device needs that repeats them.
pub fn interrupted_steps<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, _| {
        let device = Default::default();
        let (b, l, v) = (2, 34, model.vocab_size());
        let ids: Vec<i64> = (0..b * l).map(|i| ((5 * i + i * i) % v) as i64).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [b, l]), &device);
        // With padding, a device copies the parameters in each step and repeats none.
        let mut network = model.clone().without_padding();
        let whole = model.logits(model.features(ids.clone()));
        let next = |i: usize| ids.clone().narrow(1, i, 1).reshape([b]);
        let check = |what: &str, i: usize, found: Tensor<B, 2>| {
            let expected = whole.clone().narrow(1, i, 1).reshape([b, v]);
            let name = format!("{case}: {what}, token {i}");
            assert_close(&name, values(found), values(expected), tolerance);
        };
        let mut state = network.new_state(b, &device);
        for i in 0..8 {
            check("the first", i, network.step(next(i), &mut state));
        }

        let mut copy = state.clone();
        for i in 8..16 {
            check("a copy", i, network.step(next(i), &mut copy));
            check("what was copied", i, network.step(next(i), &mut state));
        }
        drop(copy);

        let held = state.layers().to_vec();
        let before: Vec<Vec<Values>> = held.iter().map(parts).collect();
        for i in 16..18 {
            check("beside held tensors", i, network.step(next(i), &mut state));
        }
        let after: Vec<Vec<Values>> = held.iter().map(parts).collect();
        assert!(
            before == after,
            "{case}: tensors that are held have changed"
        );

        let piece = ids.clone().narrow(1, 18, 3);
        check("a piece", 20, network.prefill(piece, &mut state));
        for i in 21..l {
            check("after a piece", i, network.step(next(i), &mut state));
        }
        assert_eq!(state.position, l, "{case}");

        // In the same place. A copy is computed.
        network = network.to_int8();
        let expected = values(network.step(next(0), &mut state.clone()));
        let found = values(network.step(next(0), &mut state));
        let name = format!("{case}: the network has changed");
        assert_close(&name, found, expected, tolerance);
    });
}

/// Every tensor of a layer's state after some tokens.
fn parts<B: KernelBackend>(state: &MixerState<B>) -> Vec<Values> {
    let tensors = state.tensors().expect("a state that can be read");
    assert!(!tensors.is_empty(), "tokens were read");
    let values = tensors.into_iter().map(|(_, data)| {
        let shape = data.shape.to_vec();
        (shape, data.iter::<f64>().collect())
    });
    values.collect()
}
