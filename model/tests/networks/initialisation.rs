//! How parameters start: drawn from a seed, or taken over from a teacher.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{
    AttentionConfig, CausalLm, DiscreteMamba2Config, Family, LlamaConfig, Mixer, PhiConfig,
    PhiMambaConfig, transfer_weights,
};
use tests::networks::*;
use tests::{assert_close, goldens_dir};

/// The padding of a vocabulary neither gets probability nor changes the others'.
#[test]
fn transfer_pads_and_copies() {
    let device = Default::default();
    let config = std::fs::read_to_string(goldens_dir().join("teacher-tiny/config.json"));
    let mut config = PhiConfig::from_json(&config.expect("a file")).expect("Phi's");
    config.vocab_size = 101; // not a multiple of 8
    let n_heads = config.attention.n_heads;
    let mixer = DiscreteMamba2Config {
        n_v_heads: n_heads,
        n_qk_heads: n_heads,
        d_state: 8,
        ..Default::default()
    };
    let teacher = CausalLm::<Exact>::init(&config, 1, &device);
    let kept = [1];
    let student_config = PhiMambaConfig::student_of(&config, &mixer, &kept).expect("a student");
    let mut student = CausalLm::init(&student_config, 2, &device);
    let mixer_before = values(mixer_weight(&student));
    transfer_weights(&mut student, &teacher).expect("the sizes fit");
    assert_eq!(student.vocab_size(), 104);
    assert_eq!(values(mixer_weight(&student)), mixer_before);

    let theirs = teacher.clone();
    let ids = burn::tensor::Tensor::<Exact, 2, _>::from_data([[1, 5, 100, 7]], &device);
    let x = theirs.backbone.embedding.forward(ids.clone());
    assert_eq!(
        values(student.backbone.embedding.forward(ids)),
        values(x.clone())
    );
    // The kept layer is the teacher's whole.
    let (ours, theirs) = (&student.backbone.layers[1], &theirs.backbone.layers[1]);
    assert_eq!(
        values(ours.forward(x.clone())),
        values(theirs.forward(x.clone()))
    );
    let padded = burn::tensor::activation::softmax(student.logits(x.clone()), 2);
    let plain = burn::tensor::activation::softmax(teacher.logits(x), 2);
    assert_eq!(values(padded.clone().narrow(2, 101, 3)).1, [0.0; 12]);
    assert_close(
        "probabilities",
        values(padded.narrow(2, 0, 101)),
        values(plain),
        1e-14,
    );
}

/// Of a Llama whose head is the embedding's, in sequential blocks: what the student takes over, and a kept layer.
#[test]
fn transfer_keeps_a_tied_head() {
    let device = Default::default();
    let config = std::fs::read_to_string(goldens_dir().join("teacher-llama/config.json"));
    let mut config = LlamaConfig::from_json(&config.expect("a file")).expect("Llama's");
    config.vocab_size = 101; // not a multiple of 8
    let mixer = DiscreteMamba2Config {
        d_state: 8,
        ..DiscreteMamba2Config::with_heads(config.attention.n_heads)
    };
    let teacher = CausalLm::<Exact>::init(&config, 1, &device);
    let student_config = config.student(&mixer.into(), &[1]).expect("a student");
    let mut student = CausalLm::<Exact>::init(&student_config, 2, &device);
    transfer_weights(&mut student, &teacher).expect("the sizes fit");
    assert!(student.lm_head.is_none());
    assert_eq!(student.vocab_size(), 104);
    let rows = values(student.backbone.embedding.weight.val().narrow(0, 101, 3)).1;
    assert!(rows.iter().all(|value| *value == 0.0));

    let ids = burn::tensor::Tensor::<Exact, 2, _>::from_data([[1, 5, 100, 7]], &device);
    let x = teacher.backbone.embedding.forward(ids.clone());
    let own = student.backbone.embedding.forward(ids);
    assert_eq!(values(own), values(x.clone()));
    let (ours, theirs) = (&student.backbone.layers[1], &teacher.backbone.layers[1]);
    let theirs = values(theirs.forward(x.clone()));
    assert_eq!(values(ours.forward(x.clone())), theirs);
    let logits = values(student.logits(x.clone()).narrow(2, 0, 101));
    assert_eq!(logits, values(teacher.logits(x)));
}

fn mixer_weight<B: KernelBackend>(student: &CausalLm<B>) -> Tensor<B, 2> {
    let Mixer::DiscreteMamba2(mixer) = &student.backbone.layers[0].mixer else {
        panic!("layer 0 is a Mamba layer");
    };
    mixer.in_proj.weight.val()
}

/// The same seed gives the same network on every backend, with and without gradients.
#[test]
fn initialisation_depends_on_the_seed_alone() {
    let folder = goldens_dir().join("student-tiny");
    let (config, _) = model::load_any::<Exact>(folder, &Default::default()).expect("one");
    let exact = CausalLm::<Exact>::init(&config, 3, &Default::default());
    let fast = CausalLm::<Fast>::init(&config, 3, &Default::default());
    let other = CausalLm::<Fast>::init(&config, 4, &Default::default());
    assert_eq!(values(mixer_weight(&exact)), values(mixer_weight(&fast)));
    assert_ne!(values(mixer_weight(&other)), values(mixer_weight(&fast)));
    let trained = CausalLm::<Autodiff<Fast>>::init(&config, 3, &Default::default());
    assert!(mixer_weight(&trained).is_require_grad());
    assert_eq!(
        values(mixer_weight(&trained.valid())),
        values(mixer_weight(&fast))
    );
}

/// The mixer starts as published: gate open, convolution passing its input, `D` one. With and
/// without biases, which hold the gate's where the mixer has no `z_bias`.
#[test]
fn initialisation_is_the_published_one() {
    let teacher = PhiConfig {
        vocab_size: 16,
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 1,
        attention: AttentionConfig {
            n_heads: 4,
            n_kv_heads: 4,
            ..PhiConfig::default().attention
        },
        ..Default::default()
    };
    for bias in [false, true] {
        let config = DiscreteMamba2Config {
            n_v_heads: 4,
            n_qk_heads: 4,
            d_state: 8,
            bias,
            z_bias: !bias,
            ..Default::default()
        };
        let config = PhiMambaConfig::student_of(&teacher, &config, &[]).expect("a student");
        let device = Default::default();
        let student = CausalLm::<Exact>::init(&config, 5, &device);
        let Mixer::DiscreteMamba2(mixer) = &student.backbone.layers[0].mixer else {
            panic!("a Mamba layer")
        };
        let (d, conv_dim) = (64, 64 + 2 * 4 * 8);
        let all = |x: Vec<f64>, value: f64| x.iter().all(|v| (v - value).abs() < 1e-6);
        let weight = mixer.in_proj.weight.val();
        let largest = |rows: Tensor<Exact, 2>| rows.abs().max().into_scalar();
        assert_eq!(largest(weight.clone().narrow(0, conv_dim, d)), 0.0);
        // Uniform in +-1/8: the largest of thousands is near the bound and not over it.
        let (x, a_log) = (
            weight.clone().narrow(0, 0, d),
            weight.narrow(0, conv_dim + d, 4),
        );
        assert!((0.12..=0.125).contains(&largest(x)));
        assert!((0.11..=0.125).contains(&largest(a_log)));
        let out = largest(mixer.out_proj.weight.val());
        let bound = 0.125 / 24f64.sqrt();
        assert!((0.99 * bound..=bound + 1e-9).contains(&out));
        let gate = match (&mixer.z_bias, &mixer.in_proj.bias) {
            (Some(own), None) if !bias => own.val(),
            (None, Some(all)) if bias => all.val().narrow(0, conv_dim, d),
            _ => panic!("the gate's bias must be in one place"),
        };
        assert!(all(values(burn::tensor::activation::silu(gate)).1, 1.0));
        assert!(all(values(mixer.d.val()).1, 1.0));
        let taps = values(mixer.conv1d.weight.val()).1;
        assert!(taps.chunks(4).all(|taps| taps == [0.0, 0.0, 0.0, 1.0]));
        let conv_bias = mixer.conv1d.bias.as_ref().expect("a bias").val();
        assert!(all(values(conv_bias).1, 0.0));
    }
}
