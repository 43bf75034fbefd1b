//! Initialisations that are refused, and initialisations that are stopped.

use std::cell::Cell;
use std::slice::from_ref;

use burn::module::Param;
use model::{
    BesideAttentionConfig, CausalLm, DiscreteMamba2Config, InitError, Initialisation, Joined,
    Mixer, MixerConfig, ModelConfig,
};
use tests::Goldens;
use tests::networks::*;

use super::{attention, first_layers, normed_teacher, options, random_text, teacher};

type B = Exact;

/// What has no place in the student is an error that says which option gives it one.
#[test]
fn what_does_not_fit_is_said() {
    let taught = teacher::<B>("teacher-tiny");
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
    let normed = normed_teacher::<B>();
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
    let taught = teacher::<B>("teacher-llama");
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
    let normed = normed_teacher::<B>();
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
    let mut taught = teacher::<B>("teacher-llama");
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
    let taught = teacher::<B>("teacher-llama");
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

/// Before each piece of text, each decay that is tried, and each fit.
#[test]
fn a_fit_is_stopped_on_request() {
    let taught = first_layers::<B>("teacher-llama", 1);
    let text = random_text(taught.0.network().vocab_size, 1, [4, 12]);
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
