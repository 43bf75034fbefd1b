//! What every teacher must do, whatever the backend.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{Phi, Taps};
use tests::{Goldens, assert_close, cases, name_of};

use super::*;

pub fn on_every_teacher<B: KernelBackend>(check: impl Fn(&str, &Phi<B>, &Goldens)) {
    for folder in cases("teacher-") {
        let name = name_of(&folder);
        let (_, model) = model::load_teacher(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &goldens);
    }
}

pub fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::all());
        let matches = |key: &str, x: Tensor<B, 3>| assert_golden(case, goldens, key, x, tolerance);
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
            assert_golden(case, goldens, &format!("attentions.{i}"), matrix, tolerance);
        }
        matches("logits", model.logits(model.features(ids)));
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
