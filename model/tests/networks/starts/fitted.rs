//! Fits layer by layer on the student's own stream. The tests compute in 32 bits, because a test program in 64 bits is
//! much slower. Tests about a single layer use a network with one layer.

use std::slice::from_ref;

use burn::module::Param;
use burn::tensor::{Int, Tensor};
use model::{CausalLm, Initialisation, Mixer, ModelConfig, Taps, TokenMixer};
use tests::networks::*;

use super::{
    beside_window, first_layers, mamba, normed_teacher, options, random_text, student, teacher,
};

type B = Fast;

/// The number of a tensor of one.
fn number<const D: usize>(x: Tensor<B, D>) -> f64 {
    values(x).1[0]
}

/// How far each layer's output is from the teacher's where every layer reads what its own network gives: the root of
/// the mean over tokens of the squares of what differs, each token's over the teacher's own.
fn drift(taught: &CausalLm<B>, student: &CausalLm<B>, text: &Tensor<B, 2, Int>) -> Vec<f64> {
    let states = |model: &CausalLm<B>| model.forward(text.clone(), Taps::all()).hidden_states;
    let both = states(student).into_iter().zip(states(taught)).skip(1);
    let of_layer = |(own, theirs): (Tensor<B, 3>, Tensor<B, 3>)| {
        let squares = |x: Tensor<B, 3>| x.powi_scalar(2).sum_dim(2);
        let share = squares(own - theirs.clone()) / squares(theirs);
        number(share.mean()).sqrt()
    };
    both.map(of_layer).collect()
}

/// On other text, `fitted` is nearer to the teacher behind the last layer than `ridge`, and that than `calibrated`. That
/// `fitted` reads the student's own stream is held by `a_fitted_projection_solves_its_equations`.
#[test]
fn fitted_starts_drift_least() {
    for name in ["teacher-llama", "teacher-tiny"] {
        let taught = teacher::<B>(name);
        let config = &taught.0;
        let text = |seed| random_text(config.network().vocab_size, seed, [16, 24]);
        let fitted = [text(1), text(2)];
        let drift_of = |how: Initialisation| {
            let (student, fits) = student(&taught, options(config).into(), how, &fitted);
            assert_eq!(fits.len(), student.backbone.layers.len(), "{name}");
            let errors: Vec<f64> = fits.iter().map(|fit| fit.error).collect();
            assert!(
                errors.iter().all(|error| (0.0..1.1).contains(error)),
                "{name}: {errors:?}"
            );
            let drift = drift(&taught.1, &student, &text(3));
            println!("{name}, {how:?}: {drift:?}");
            drift[drift.len() - 1]
        };
        let calibrated = drift_of(Initialisation::Calibrated);
        let ridge = drift_of(Initialisation::Ridge);
        let fitted = drift_of(Initialisation::Fitted);
        assert!(ridge < calibrated, "{name}: {ridge}, {calibrated}");
        assert!(fitted < ridge, "{name}: {fitted}, {ridge}");
    }
}

/// In the first layer, where both start from the same, steps of Adam leave nothing worse on what is held out; and B
/// and C have the same size there.
#[test]
fn a_tuned_layer_is_no_worse_and_even() {
    let taught = first_layers::<B>("teacher-llama", 1);
    let text = random_text(taught.0.network().vocab_size, 1, [2, 16]);
    let start = |how: Initialisation| {
        let (student, fits) = student(&taught, options(&taught.0).into(), how, from_ref(&text));
        (student, fits[0].error)
    };
    let (student, fitted) = start(Initialisation::Fitted);
    let (_, tuned) = start(Initialisation::Tuned);
    assert!(tuned <= fitted, "{tuned}, {fitted}");

    let states = taught
        .1
        .forward(text.narrow(0, 0, 1), Taps::all())
        .hidden_states;
    let block = &taught.1.backbone.layers[0];
    let u = block.input_layernorm.forward(states[0].clone());
    let parts = mamba(&student, 0).transfer_parts(u).expect("its factors");
    // The constant channel, which is even by itself, is left out of the squares of B and C.
    let mixer = mamba(&student, 0);
    let bias = values(mixer.conv1d.bias.as_ref().expect("a bias").val()).1;
    let (n, h, d) = (mixer.config().d_state, mixer.config().n_v_heads, 48);
    let squares = |x: Tensor<B, 4>, first: usize| -> Vec<f64> {
        let tokens = (x.dims()[0] * x.dims()[1]) as f64;
        let all = x.powi_scalar(2).sum_dim(0).sum_dim(1).sum_dim(3);
        let heads = values(all).1.into_iter().enumerate();
        let constant = |head: usize| bias[first + head * n + n / 2 - 1].powi(2);
        heads
            .map(|(head, all)| all / tokens - constant(head))
            .collect()
    };
    let both = squares(parts.b, d)
        .into_iter()
        .zip(squares(parts.c, d + h * n));
    for (b, c) in both {
        assert!(b > 0.0 && (b / c - 1.0).abs() < 1e-4, "{b}, {c}");
    }
}

/// In each layer, which reads what the student's own layers before it give, the output projection is where the gradient
/// of two things is zero: of the squared distance to what brings the stream back to the teacher's, each token's over the
/// squares of that stream, and of a ridge around the copy, one of those that are tried.
#[test]
fn a_fitted_projection_solves_its_equations() {
    let taught = first_layers::<B>("teacher-llama", 2);
    let how = Initialisation::Fitted;
    // From the copy, `[d, d_inner]`.
    let change = |student: &CausalLm<B>, layer: usize| {
        let Mixer::Attention(attention) = &taught.1.backbone.layers[layer].mixer else {
            panic!("a teacher has attention");
        };
        mamba(student, layer).out_proj.weight.val() - attention.dense.weight.val()
    };
    let largest = |x: Tensor<B, 2>| number(x.abs().max());
    for layer in 0..2 {
        let mut fits = (1..=8).rev().map(|seed| {
            let text = random_text(taught.0.network().vocab_size, seed, [64, 40]);
            let (student, _) = student(&taught, options(&taught.0).into(), how, from_ref(&text));
            (student, text)
        });
        // The fit is kept where it is nearer on held-out text: not for every text of random tokens.
        let fitted = fits.find(|(student, _)| largest(change(student, layer)) > 1e-3);
        let (student, text) = fitted.expect("a projection that was fitted");
        // One sequence of eight is held out.
        let text = text.narrow(0, 0, 56);
        let theirs = taught.1.forward(text.clone(), Taps::all());
        let own = student.forward(text, Taps::all()).hidden_states;

        let sum = theirs.hidden_states[layer].clone() + theirs.mixer_outputs[layer].clone();
        let root = sum.clone().powi_scalar(2).mean_dim(2).sqrt().recip();
        let rows = |x: Tensor<B, 3>| -> Tensor<B, 2> { (x * root.clone()).flatten(0, 1) };
        let beside = own[layer].clone();
        let block = &student.backbone.layers[layer];
        let u = block.input_layernorm.forward(beside.clone());
        let wanted = rows(sum - beside);
        let d = wanted.dims()[1];

        let mixer = mamba(&student, layer);
        let lacking = wanted.clone() - rows(mixer.forward(u.clone()));
        let mut open = mixer.clone();
        open.out_proj.weight = Param::from_tensor(Tensor::eye(d, &u.device()));
        let y = rows(open.forward(u));
        let change = change(&student, layer).transpose();
        let gram = y.clone().transpose().matmul(y.clone());
        let mean = number((gram * Tensor::eye(d, &y.device())).sum()) / d as f64;
        let right = y.clone().transpose().matmul(wanted);
        let gradient = y.transpose().matmul(lacking);
        let ridges = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
        let left = ridges.map(|ridge| largest(gradient.clone() - change.clone() * (ridge * mean)));
        // Tokens count by a little less than the inverse of their squares: by 1e-6 of all.
        let least = left.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(least < 1e-4 * largest(right), "layer {layer}: {left:?}");
    }
}

/// Of text that says nothing of most directions. Of a single short sequence nothing is held out, and each fit is kept that
/// comes nearer on it: that of the output projection does by its definition, and the descent starts from it. Where
/// there is nothing to fit, as of one token again and again or of values that are zero, all numbers are finite.
#[test]
fn fits_of_little_text_are_finite_and_the_same() {
    let mut taught = first_layers::<B>("teacher-llama", 1);
    let random = random_text(taught.0.network().vocab_size, 1, [1, 12]);
    let mixer = options(&taught.0).into();
    let how = Initialisation::Fitted;
    let (fitted, fits) = student(&taught, mixer, how, from_ref(&random));
    let closed = fits[0].error;
    let Mixer::Attention(attention) = &taught.1.backbone.layers[0].mixer else {
        panic!("a teacher has attention");
    };
    let change = mamba(&fitted, 0).out_proj.weight.val() - attention.dense.weight.val();
    assert!(number(change.abs().max()) > 0.0);

    let numbers = |model: &CausalLm<B>| {
        let mixer = mamba(model, 0);
        let weights = [&mixer.in_proj.weight, &mixer.out_proj.weight];
        let mut all: Vec<f64> = weights
            .iter()
            .flat_map(|weight| values(weight.val()).1)
            .collect();
        all.extend(values(mixer.d.val()).1);
        all
    };
    let start = |taught: &(ModelConfig, CausalLm<B>), text: &Tensor<B, 2, Int>| {
        let mixer = options(&taught.0).into();
        let (student, fits) = student(taught, mixer, Initialisation::Tuned, from_ref(text));
        let numbers = numbers(&student);
        assert!(numbers.iter().all(|number| number.is_finite()));
        assert!(fits[0].error.is_finite(), "{fits:?}");
        (numbers, fits[0].error)
    };
    let first = start(&taught, &random);
    assert!(first.1 < closed, "{}, {closed}", first.1);
    assert_eq!(first, start(&taught, &random));

    let one_token = Tensor::<B, 2, Int>::zeros([1, 12], &Default::default());
    start(&taught, &one_token);
    for layer in &mut taught.1.backbone.layers {
        let Mixer::Attention(attention) = &mut layer.mixer else {
            panic!("a teacher has attention");
        };
        let weight = attention.v_proj.weight.val();
        attention.v_proj.weight = Param::from_tensor(weight.zeros_like());
    }
    start(&taught, &one_token);
}

/// Norms of queries and keys, and a window of attention beside the mixer.
#[test]
fn every_mixer_is_fitted() {
    let normed = normed_teacher::<B>();
    let taught = teacher::<B>("teacher-llama");
    let window = beside_window(&taught.0);
    let alone = options(&normed.0).into();
    for (taught, mixer) in [(&normed, alone), (&taught, window)] {
        let text = |seed| random_text(taught.0.network().vocab_size, seed, [16, 24]);
        let last = |how: Initialisation| {
            let (student, _) = student(taught, mixer.clone(), how, &[text(1), text(2)]);
            let drift = drift(&taught.1, &student, &text(3));
            drift[drift.len() - 1]
        };
        let (copied, fitted) = (last(Initialisation::Copy), last(Initialisation::Fitted));
        assert!(fitted < copied, "{}: {fitted}, {copied}", mixer.kind());
    }
}
