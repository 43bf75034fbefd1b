//! Networks with parts removed: attention within a window or none, no state-space mixer, and states that are reset.

use burn::tensor::{Distribution, Tensor};
use kernels::{KernelBackend, Window};
use model::{
    BesideAttentionConfig, CausalLm, Mixer, MixerConfig, MixerState, NetworkConfig, TokenMixer,
};
use tests::assert_close;
use tests::networks::*;

use crate::block_orders::{networks, random, tokens};

fn logits<B: KernelBackend>(model: &CausalLm<B>) -> Tensor<B, 3> {
    model.logits(model.features(tokens()))
}

/// The window of each attention as the documentation has it: that of the control, unless its own has as many last
/// tokens or fewer.
fn narrowed(network: &NetworkConfig, window: Window) -> NetworkConfig {
    let mut network = network.clone();
    for mixer in &mut network.mixers {
        let attention = match mixer {
            MixerConfig::Attention(attention) => attention,
            MixerConfig::BesideAttention(BesideAttentionConfig {
                attention: Some(attention),
                ..
            }) => attention,
            _ => continue,
        };
        match attention.window {
            Some(own) if own.window <= window.window => {}
            _ => attention.window = Some(window),
        }
    }
    network
}

/// The same parameters in a network that was made with these windows.
fn windows_are_those_of_the_options<B: KernelBackend>(tolerance: f64) {
    for (name, network) in networks() {
        let plain = random::<B>(&network);
        for (window, sinks) in [(11, 0), (4, 1), (3, 0), (2, 2), (1, 0), (usize::MAX, 1)] {
            let window = Window { window, sinks };
            let name = format!("{name}: {window:?}");
            let control = plain.clone().with_attention_within(window).unwrap();
            let expected = random::<B>(&narrowed(&network, window));
            let mixers = control
                .backbone
                .layers
                .iter()
                .map(|layer| layer.mixer.config());
            assert_eq!(
                mixers.collect::<Vec<_>>(),
                narrowed(&network, window).mixers,
                "{name}"
            );
            let logits_of_control = values(logits(&control));
            assert_close(
                &name,
                logits_of_control.clone(),
                values(logits(&expected)),
                tolerance,
            );
            if window.window >= 11 {
                assert_close(&name, logits_of_control, values(logits(&plain)), tolerance);
                continue;
            }
            let off = (logits(&control) - logits(&plain)).abs().max();
            let off: f64 = off.into_data().iter::<f64>().sum();
            assert!(off > 1e-3, "{name}: {off}");
        }
    }
}

/// Written out: of each layer, the MLP and what no attention has added.
fn by_hand<B: KernelBackend>(model: &CausalLm<B>) -> Tensor<B, 3> {
    let mut x = model.backbone.embedding.forward(tokens());
    for layer in &model.backbone.layers {
        let normed = layer.input_layernorm.forward(x.clone());
        let mixed = match (layer.mixer.mamba(), layer.mixer.softmax()) {
            (Some(mamba), _) => x + mamba.forward(normed.clone()),
            (None, Some(_)) => x,
            (None, None) => x + layer.mixer.forward(normed.clone()),
        };
        x = match &layer.post_mixer_layernorm {
            None => mixed + layer.mlp.forward(normed),
            Some(norm) => mixed.clone() + layer.mlp.forward(norm.forward(mixed)),
        };
    }
    model.logits(model.backbone.final_layernorm.forward(x))
}

fn no_attention_leaves_the_rest<B: KernelBackend>(tolerance: f64) {
    let device = Default::default();
    for (name, network) in networks() {
        let plain = random::<B>(&network);
        let control = plain.clone().without_attention().unwrap();
        let expected = values(by_hand(&plain));
        assert_close(&name, values(logits(&control)), expected.clone(), tolerance);
        // In pieces, and in the form of inference.
        for control in [control.clone(), control.fuse_projections()] {
            let mut state = control.new_state(2, &device);
            let mut pieces = vec![control.prefill_all(tokens().narrow(1, 0, 10), &mut state)];
            let last = tokens().narrow(1, 10, 1).reshape([2]);
            pieces.push(control.step(last, &mut state).unsqueeze_dim(1));
            let pieces = values(Tensor::cat(pieces, 1));
            assert_close(&name, pieces, expected.clone(), tolerance);
        }
    }
}

/// The mixers with a state-space mixer in them, each with an input.
fn with_ssm<B: KernelBackend>(model: &CausalLm<B>) -> Vec<(&Mixer<B>, Tensor<B, 3>)> {
    let device = Default::default();
    let layers = model.backbone.layers.iter().map(|layer| &layer.mixer);
    let mixers = layers.filter(|mixer| mixer.mamba().is_some());
    let d = model.backbone.embedding.weight.val().dims()[1];
    let u = |mixer| {
        let u = Tensor::random([2, 11, d], Distribution::Normal(0.0, 1.0), &device);
        (mixer, u)
    };
    mixers.map(u).collect()
}

/// The logits of `control` in one piece, and in pieces and a step.
fn pieces_are_the_whole<B: KernelBackend>(name: &str, control: &CausalLm<B>, tolerance: f64) {
    let mut state = control.new_state(2, &Default::default());
    let part = |start, n| tokens().narrow(1, start, n);
    let mut pieces = vec![
        control.prefill_all(part(0, 1), &mut state),
        control.prefill_all(part(1, 8), &mut state),
    ];
    for i in [9, 10] {
        let step = control.step(part(i, 1).reshape([2]), &mut state);
        pieces.push(step.unsqueeze_dim(1));
    }
    let pieces = values(Tensor::cat(pieces, 1));
    assert_close(name, pieces, values(logits(control)), tolerance);
}

/// Rows of a batch that are at different positions are what each is alone.
fn rows_are_sequences<B: KernelBackend>(name: &str, control: &CausalLm<B>, tolerance: f64) {
    let device = Default::default();
    let mut batch = control.new_batch(3, &device);
    let mut states = vec![];
    for (row, read) in [(0, 8), (2, 6)] {
        let mut state = control.new_state(1, &device);
        control.prefill(tokens().narrow(0, 0, 1).narrow(1, 0, read), &mut state);
        batch.put(row, state.clone());
        states.push((row, state));
    }
    for _ in 0..3 {
        let next = tokens().narrow(0, 1, 1).narrow(1, 0, 1).reshape([1]);
        let logits = control.step_batch(Tensor::cat(vec![next.clone(); 3], 0), &mut batch);
        for (row, state) in &mut states {
            let alone = control.step(next.clone(), state);
            let found = logits.clone().narrow(0, *row, 1);
            assert_close(name, values(found), values(alone), tolerance);
        }
    }
}

/// What is missing is what the state-space mixer adds: half of its output where an adapter averages both.
fn no_ssm_leaves_the_rest<B: KernelBackend>(tolerance: f64) {
    for (name, network) in networks() {
        let plain = random::<B>(&network);
        let control = plain.clone().without_ssm().unwrap();
        let mixers = with_ssm(&plain).into_iter().zip(with_ssm(&control));
        for ((mixer, u), (silent, _)) in mixers {
            let share = if mixer.is_sum() { 1.0 } else { 0.5 };
            let ssm = mixer.mamba().unwrap().forward(u.clone()) * share;
            let missing = mixer.forward(u.clone()) - silent.forward(u);
            assert_close(&name, values(missing), values(ssm), tolerance);
        }
        pieces_are_the_whole(&name, &control, tolerance);
        // With neither, whichever goes first, a mixer adds nothing.
        let both = [
            control.without_attention().unwrap(),
            plain.without_attention().unwrap().without_ssm().unwrap(),
        ];
        for both in both {
            for (mixer, u) in with_ssm(&both) {
                let output = mixer.forward(u);
                let zeros = output.zeros_like();
                assert_close(&name, values(output), values(zeros), 0.0);
            }
        }
    }
}

/// As pieces before each of which the state is emptied, and nothing else.
fn states_are_reset<B: KernelBackend>(tolerance: f64) {
    let device = Default::default();
    for (name, network) in networks() {
        let plain = random::<B>(&network);
        for every in [1, 4, 11, 100] {
            let name = format!("{name}: {every}");
            let control = plain.clone().with_state_reset_every(every).unwrap();
            let mixers = with_ssm(&plain).into_iter().zip(with_ssm(&control));
            for ((mixer, u), (reset, _)) in mixers {
                let (mamba, reset) = (mixer.mamba().unwrap(), reset.mamba().unwrap());
                let mut state = mamba.new_state(2, &device);
                let piece = |start| {
                    if let MixerState::DiscreteMamba2(state) = &mut state {
                        state.ssm = state.ssm.zeros_like();
                    }
                    let piece = u.clone().narrow(1, start, every.min(11 - start));
                    mamba.prefill(piece, &mut state)
                };
                let pieces = (0..11).step_by(every).map(piece).collect();
                let expected = values(Tensor::cat(pieces, 1));
                assert_close(&name, values(reset.forward(u.clone())), expected, tolerance);
                let whole = mamba.forward(u.clone());
                let largest =
                    |x: Tensor<B, 3>| -> f64 { x.abs().max().into_data().iter::<f64>().sum() };
                let off = largest(reset.forward(u) - whole.clone()) / largest(whole);
                assert_eq!(off > 1e-3, every < 11, "{name}: {off}");
            }
            pieces_are_the_whole(&name, &control, tolerance);
            rows_are_sequences(&name, &control, tolerance);
        }
    }
}

on_both! {
    windows_are_those_of_the_options(1e-11, 2e-4);
    no_attention_leaves_the_rest(1e-11, 2e-4);
    no_ssm_leaves_the_rest(1e-11, 2e-4);
    states_are_reset(1e-11, 2e-4);
}

/// Weights in 8 bits are no hindrance.
#[test]
fn packed_networks_have_controls() {
    for (name, network) in networks() {
        let plain = random::<Fast>(&network);
        for control in [CausalLm::without_attention, CausalLm::without_ssm] {
            let packed = control(plain.clone().to_int8()).unwrap();
            // The same in the other order: the numbers of all other weights are packed alike.
            let expected = control(plain.clone()).unwrap().to_int8();
            assert_close(
                &name,
                values(logits(&packed)),
                values(logits(&expected)),
                1e-5,
            );
        }
    }
}

#[test]
fn a_network_without_attention_has_none() {
    let (_, mut network) = networks().remove(0);
    network
        .mixers
        .retain(|mixer| matches!(mixer, MixerConfig::DiscreteMamba2(_)));
    assert_eq!(network.mixers.len(), 1);
    let model = random::<Fast>(&network);
    let window = Window {
        window: 3,
        sinks: 0,
    };
    assert!(model.clone().with_attention_within(window).is_none());
    assert!(model.without_attention().is_none());
}

#[test]
fn a_network_without_a_state_space_mixer_has_none() {
    let (_, mut network) = networks().remove(0);
    network
        .mixers
        .retain(|mixer| matches!(mixer, MixerConfig::Attention(_)));
    assert!(!network.mixers.is_empty());
    let model = random::<Fast>(&network);
    assert!(model.clone().without_ssm().is_none());
    assert!(model.with_state_reset_every(3).is_none());
}

/// Of the rows of a batch that are named, the window beside the mixer adds nothing to them, and the gradient of what it
/// adds is that of the others.
fn windows_are_left_out_of_rows<B: KernelBackend>(tolerance: f64) {
    let all = networks().into_iter();
    let mut windowed = all.filter_map(|(name, network)| {
        let mut mixers = network.mixers.iter();
        let both = mixers.find(|mixer| {
            matches!(mixer, MixerConfig::BesideAttention(both)
                if both.attention.as_ref().is_some_and(|attention| attention.window.is_some()))
        });
        let mixers = vec![both?.clone(); 2];
        Some((name, NetworkConfig { mixers, ..network }))
    });
    let (name, network) = windowed.next().expect("a mixer beside a window");
    let plain = random::<B>(&network);
    let with = |rows: &[bool]| {
        let model = plain.clone().without_window_in(rows).expect("a window");
        logits(&model)
    };
    let none = plain.clone().without_attention().expect("a window");
    // The same bits: nothing else is computed.
    assert_eq!(values(with(&[true, true])), values(logits(&none)), "{name}");
    for rows in [&[][..], &[false, false]] {
        assert_eq!(values(with(rows)), values(logits(&plain)), "{name}");
    }
    let row = |x: Tensor<B, 3>, row| values(x.narrow(0, row, 1));
    let first = with(&[true, false]);
    assert_close(
        &name,
        row(first.clone(), 0),
        row(logits(&none), 0),
        tolerance,
    );
    assert_close(&name, row(first, 1), row(logits(&plain), 1), tolerance);
    // Back again, and where there is no window.
    let back = plain.clone().without_window_in(&[true, true]);
    let back = back
        .and_then(|model| model.without_window_in(&[]))
        .expect("a window");
    assert_eq!(values(logits(&back)), values(logits(&plain)), "{name}");
    let (_, others) = networks().swap_remove(0);
    assert!(
        random::<B>(&NetworkConfig {
            mixers: others.mixers[..1].to_vec(),
            ..others
        })
        .without_window_in(&[true, true])
        .is_none()
    );
}

on_both! {
    windows_are_left_out_of_rows(1e-12, 2e-4);
}
