//! Phi against Hugging Face's implementation with the same weights, and its decoding against itself.

use model::Taps;
use tests::networks::teacher::*;
use tests::networks::*;

on_both! {
    whole_sequence(EXACT, FAST);
    decoding(EXACT, FAST);
    splits(EXACT, FAST);
}

/// Nothing is computed that was not asked for, and each layer alone gives what the network gives.
#[test]
fn taps_and_layers() {
    on_every_teacher::<Exact>(|case, model, goldens| {
        let ids = ids::<Exact>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::default());
        assert!(outputs.logits.is_none());
        assert!(outputs.hidden_states.is_empty());
        assert!(outputs.mixer_outputs.is_empty());
        assert!(outputs.mixing_matrices.is_empty());

        let mut x = model.backbone.embedding.forward(ids);
        for (i, layer) in model.backbone.layers.iter().enumerate() {
            let matrix = layer.mixing_matrix(x.clone());
            assert_golden(case, goldens, &format!("attentions.{i}"), matrix, EXACT);
            let mixed = layer.mixer_output(x.clone());
            assert_golden(case, goldens, &format!("attn_outputs.{i}"), mixed, EXACT);
            x = layer.forward(x);
            let key = format!("hidden_states.{}", i + 1);
            assert_golden(case, goldens, &key, x.clone(), EXACT);
        }
    });
}
