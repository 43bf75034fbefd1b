//! Teachers of all families against Hugging Face's implementation with the same weights, and their decoding against
//! itself.

use model::{Mixer, Taps, rotary_frequencies};
use tests::networks::teacher::*;
use tests::networks::*;

on_both! {
    whole_sequence(EXACT, FAST);
    decoding(EXACT, FAST);
    splits(EXACT, FAST);
    greedy();
    joining(1e-12, 2e-5);
    eight_bits();
}

/// The rotation's frequencies, with the scaling of those that have one.
#[test]
fn frequencies() {
    on_every_teacher::<Exact>(|case, model, goldens| {
        if !goldens.has("inv_freq") {
            return;
        }
        let Mixer::Attention(attention) = &model.backbone.layers[0].mixer else {
            panic!("{case}: a teacher has attention")
        };
        let options = attention.config();
        let dim = options.rotary_dim(model.backbone.embedding.weight.dims()[1]);
        let found = rotary_frequencies(dim, options.rope_theta, options.rope_scaling);
        let (_, expected) = goldens.f64("inv_freq");
        assert_eq!(found.len(), expected.len(), "{case}");
        for (found, expected) in found.iter().zip(&expected) {
            let apart = (found - expected).abs();
            assert!(apart < 1e-6 * expected, "{case}: {found} and {expected}");
        }
    });
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
