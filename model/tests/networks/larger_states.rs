//! Starts on text where the state has more numbers than the attention's heads, and whatever was drawn before them.

use burn::tensor::{Int, Tensor, TensorData};
use model::{
    CausalLm, DiscreteMamba2, DiscreteMamba2Config, Family, Fit, Initialisation, MixerConfig,
    transfer_weights,
};
use tests::goldens_dir;
use tests::networks::*;

type B = Exact;

/// The teacher's heads are so many, of so many numbers, in a network so wide.
const HEADS: usize = 4;
const HEAD: usize = 12;
const WIDTH: usize = 48;

/// Eight sequences of tokens that are all over the vocabulary.
fn text() -> Tensor<B, 2, Int> {
    let ids: Vec<i64> = (0..8 * 16).map(|i| i * i * 31 % 101).collect();
    Tensor::from_data(TensorData::new(ids, [8, 16]), &Default::default())
}

/// The student of the recorded Llama, of states of `n` for each head, drawn from `seed`, that starts by `how`.
fn started(n: usize, seed: u64, how: Initialisation) -> (CausalLm<B>, Vec<Fit>) {
    let device = Default::default();
    let folder = goldens_dir().join("teacher-llama");
    let (config, teacher) = model::load_any::<B>(folder, &device).expect("a teacher");
    let network = config.network();
    let mixer = MixerConfig::from(DiscreteMamba2Config {
        d_state: n,
        z_bias: true,
        chunk_size: 8,
        ..DiscreteMamba2Config::with_heads(HEADS)
    });
    let mixer = how.options_of(mixer, &network.mixers[0], network.d_model);
    let config = config.student(&mixer, &[]).expect("a student");
    let mut student = CausalLm::init(&config, seed, &device);
    transfer_weights(&mut student, &teacher).expect("the sizes fit");
    let fits = how.apply(&mut student, &teacher, &[text()], &|| false);
    let fits = fits.expect("a start");
    (student, fits)
}

fn first_mixer(student: &CausalLm<B>) -> &DiscreteMamba2<B> {
    let mixer = student.backbone.layers[0].mixer.mamba();
    mixer.expect("a state-space mixer")
}

/// The constant of a start on the student's own stream is the last number of a larger state, which the attention lacks:
/// no channel of the keys is lost for it.
#[test]
fn a_larger_state_has_room_for_the_constant() {
    let n = 20;
    for (how, has_constant) in [
        (Initialisation::Even, false),
        (Initialisation::Fitted, true),
    ] {
        let (student, fits) = started(n, 5, how);
        assert!(fits.iter().all(|fit| fit.error < 1.0), "{how:?}: {fits:?}");
        let mixer = first_mixer(&student);
        let weight = mixer.in_proj.weight.val();
        let bias = mixer.conv1d.bias.as_ref().expect("a bias").val();
        let bias: Vec<f64> = bias.into_data().iter().collect();
        for head in 0..HEADS {
            // B stands behind x.
            let at = |channel: usize| WIDTH + head * n + channel;
            let largest = |channel: usize| -> f64 {
                let row = weight.clone().narrow(0, at(channel), 1);
                row.abs().max().into_scalar()
            };
            // The channel that turns slowest, and the last one of a key.
            assert!(largest(HEAD / 2 - 1) > 0.0 && largest(HEAD - 1) > 0.0);
            assert_eq!(largest(n - 1) == 0.0, has_constant, "{how:?}, {head}");
            assert_eq!(bias[at(n - 1)] != 0.0, has_constant, "{how:?}, {head}");
        }
    }
}

/// So one start does for students of any seed.
#[test]
fn a_start_on_text_does_not_depend_on_what_was_drawn() {
    for how in [Initialisation::Calibrated, Initialisation::Fitted] {
        let logits = [1, 2].map(|seed| {
            let (student, _) = started(HEAD, seed, how);
            let logits = student.logits(student.features(text()));
            logits.into_data().iter::<f64>().collect::<Vec<_>>()
        });
        assert_eq!(logits[0], logits[1], "{how:?}");
    }
}
