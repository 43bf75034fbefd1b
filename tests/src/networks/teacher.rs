//! What every teacher must do, whatever the backend.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{CausalLm, Taps};

use super::decoding::*;
use super::*;
use crate::{Goldens, assert_close, name_of, teachers};

/// Runs `check` on every teacher folder: its name, its network, and what is expected of it.
pub fn on_every_teacher<B: KernelBackend>(check: impl Fn(&str, &CausalLm<B>, &Goldens)) {
    for folder in teachers() {
        let name = name_of(&folder);
        let (_, model) = model::load_any(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &goldens);
    }
}

/// Everything that [`Taps`] can ask for is as recorded, with separate projections and with fused ones.
pub fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let fused = (format!("{case}, fused"), model.clone().fuse_projections());
        for (case, model) in [(case.to_string(), model.clone()), fused] {
            let outputs = model.forward(ids.clone(), Taps::all());
            let matches =
                |key: &str, x: Tensor<B, 3>| assert_golden(&case, goldens, key, x, tolerance);
            matches("logits", outputs.logits.expect("asked for"));
            for (i, x) in outputs.hidden_states.into_iter().enumerate() {
                matches(&format!("hidden_states.{i}"), x);
            }
            for (i, x) in outputs.mixer_outputs.into_iter().enumerate() {
                matches(&format!("attn_outputs.{i}"), x);
            }
            let layers = model.backbone.layers.len();
            assert_eq!(outputs.mixing_matrices.len(), layers);
            for (i, matrix) in outputs.mixing_matrices.into_iter().enumerate() {
                let key = format!("attentions.{i}");
                assert_golden(&case, goldens, &key, matrix, tolerance);
            }
            matches("logits", model.logits(model.features(ids.clone())));
        }
    });
}

/// The key-value cache: any split of a sequence gives the logits of the whole.
pub fn splits<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let device = Default::default();
        let ids = ids::<B>(goldens, "input_ids", &device);
        let [b, l] = ids.dims();
        let expected = goldens.f64("logits");
        for split in [vec![l], vec![1; l], vec![5, 1, 1, l - 7], vec![l - 1, 1]] {
            let mut state = model.new_state(b, &device);
            let mut start = 0;
            let pieces = split.iter().map(|n| {
                let piece = ids.clone().narrow(1, start, *n);
                start += n;
                model.prefill_all(piece, &mut state)
            });
            let logits: Tensor<B, 3> = Tensor::cat(pieces.collect(), 1);
            let name = format!("{case}: {split:?}");
            assert_close(&name, values(logits), expected.clone(), tolerance);
        }
    });
}

/// Token by token after a prompt: the logits of the whole sequence.
pub fn decoding<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let device = Default::default();
        let ids = ids::<B>(goldens, "input_ids", &device);
        let [b, l] = ids.dims();
        let expected = goldens.f64("logits");
        for prompt in [1, 6] {
            let mut state = model.new_state(b, &device);
            let first = ids.clone().narrow(1, 0, prompt);
            let mut logits = vec![model.prefill_all(first, &mut state)];
            for i in prompt..l {
                let next = ids.clone().narrow(1, i, 1).reshape([b]);
                logits.push(model.step(next, &mut state).unsqueeze_dim(1));
            }
            assert_eq!(state.position, l);
            let logits: Tensor<B, 3> = Tensor::cat(logits, 1);
            let name = format!("{case}: after {prompt}");
            assert_close(&name, values(logits), expected.clone(), tolerance);
        }
    });
}

/// The recorded texts, where there are such.
pub fn greedy<B: KernelBackend>() {
    on_every_teacher::<B>(|case, model, goldens| {
        if goldens.has("greedy_ids") {
            assert_greedy(case, model, goldens);
        }
    });
}

/// See [`assert_joins`].
pub fn joining<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| assert_joins(case, model, goldens, tolerance));
}

/// See [`assert_eight_bits`].
pub fn eight_bits<B: KernelBackend>() {
    on_every_teacher::<B>(assert_eight_bits);
}
