//! What every student must do, whatever the backend.

use super::decoding::*;
use super::*;
use crate::{Goldens, Values, assert_close, cases, name_of};
use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{MixerState, PhiMamba, State, Taps};

/// Runs `check` on every student folder: its name, its network, and what is expected of it.
fn on_every_student<B: KernelBackend>(check: impl Fn(&str, &PhiMamba<B>, &Goldens)) {
    for folder in cases("student-") {
        let name = name_of(&folder);
        let (_, model) = model::load_any(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &goldens);
    }
}

/// Everything that [`Taps`] can ask for is as recorded.
pub fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_student::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::all());
        let matches = |key: &str, x: Tensor<B, 3>| assert_golden(case, goldens, key, x, tolerance);
        matches("logits", outputs.logits.expect("asked for"));
        let layers = model.backbone.layers.len();
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

fn assert_state<B: KernelBackend>(
    case: &str,
    goldens: &Goldens,
    prefix: &str,
    state: &State<B>,
    tolerance: f64,
) {
    for (i, layer) in state.layers.iter().enumerate() {
        let MixerState::DiscreteMamba2(state) = layer else {
            panic!("{case}: only pure students have recorded states");
        };
        let key = |part: &str| format!("{prefix}.{part}.{i}");
        assert_golden(case, goldens, &key("conv"), state.conv.clone(), tolerance);
        assert_golden(case, goldens, &key("ssm"), state.ssm.clone(), tolerance);
    }
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
        assert_state(case, goldens, "prompt_state", &state, tolerance);
        let bytes = state.bytes();
        for i in prompt..read {
            let next = ids.clone().narrow(1, i, 1).reshape([b]);
            logits.push(model.step(next, &mut state).unsqueeze_dim(1));
        }
        assert_state(case, goldens, "final_state", &state, tolerance);
        assert_eq!(state.bytes(), bytes, "{case}: the state must not grow");
        assert_eq!(state.position, read);
        let logits: Tensor<B, 3> = Tensor::cat(logits, 1);
        assert_golden(case, goldens, "decode_logits", logits, tolerance);
    });
}

/// The vectors were recorded with padding ids taking part, so the largest of all logits wins.
pub fn greedy<B: KernelBackend>() {
    on_every_student::<B>(assert_greedy);
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
            for (layer, expected) in state.layers.iter().zip(&whole_state.layers) {
                for (actual, expected) in parts(layer).into_iter().zip(parts(expected)) {
                    assert_close(&name, actual, expected, tolerance);
                }
            }
        }
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
