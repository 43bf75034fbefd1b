//! What is copied: against recorded vectors, and what keeps what it was.

use std::slice::from_ref;

use burn::module::Param;
use burn::tensor::Tensor;
use kernels::Window;
use model::mohawk::{hidden_state_loss, matrix_orientation_loss};
use model::{
    AttentionConfig, BesideAttentionConfig, CausalLm, DiscreteMamba2, DiscreteMamba2Config,
    FeatureMap, Initialisation, Joined, Linear, Mixer, MixerConfig, Outputs, Taps, TokenMixer,
};
use tests::networks::*;
use tests::{Goldens, assert_close, goldens_dir};

use super::{attention, mamba, normed_teacher, options, student, teacher};

type B = Exact;

/// Every recorded value of the student that starts as a copy.
#[test]
fn the_copy_is_the_recorded_one() {
    let case = "init-from-attention";
    let goldens = Goldens::open(&format!("{case}/expected"));
    let device = Default::default();
    let (config, recorded) = model::load_any::<B>(goldens_dir().join(case), &device).expect("one");
    let taught = teacher::<B>("teacher-llama");
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

/// Heads that are kept are the teacher's, with the keys and values that they share; what they give is not fitted
/// again.
#[test]
fn kept_heads_are_the_teachers() {
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    let heads = vec![1, 2];
    for taught in [teacher::<B>("teacher-llama"), normed_teacher::<B>()] {
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
    let taught = teacher::<B>("teacher-llama");
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

/// Gates of B begin at 1, and every start leaves them there.
#[test]
fn a_start_with_gates_is_one_without() {
    let goldens = Goldens::open("teacher-llama/expected");
    let text = ids::<B>(&goldens, "input_ids", &Default::default());
    for name in ["teacher-llama", "llama-bias"] {
        let taught = teacher::<B>(name);
        for how in [
            Initialisation::Copy,
            Initialisation::Calibrated,
            Initialisation::Fitted,
        ] {
            let logits = |b_gate: bool| {
                let mixer = DiscreteMamba2Config {
                    b_gate,
                    ..options(&taught.0)
                };
                let (student, _) = student(&taught, mixer.into(), how, from_ref(&text));
                values(student.logits(student.features(text.clone())))
            };
            assert_close(
                &format!("{name}, {how:?}"),
                logits(true),
                logits(false),
                1e-9,
            );
        }
    }
}

/// The output projection's bias is added once where attention stands beside the mixer.
#[test]
fn a_bias_of_the_output_is_added_once() {
    let taught = teacher::<B>("llama-bias");
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
