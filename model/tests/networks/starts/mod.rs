//! The ways in which a student takes over its teacher's attention: the copy against recorded vectors, fits against
//! their definitions written out, and what each is worth before training.

mod calibrated;
mod copies;
mod fitted;
mod refused;

use burn::tensor::{Int, Tensor, TensorData};
use kernels::{KernelBackend, Window};
use model::{
    AttentionConfig, BesideAttentionConfig, CausalLm, DiscreteMamba2, DiscreteMamba2Config,
    Initialisation, Joined, LlamaConfig, LlamaFamily, MixerConfig, ModelConfig, transfer_weights,
};
use tests::goldens_dir;

/// A teacher of the goldens.
fn teacher<B: KernelBackend>(name: &str) -> (ModelConfig, CausalLm<B>) {
    model::load_any(goldens_dir().join(name), &Default::default()).expect("a teacher")
}

/// The first `n` layers of one.
fn first_layers<B: KernelBackend>(name: &str, n: usize) -> (ModelConfig, CausalLm<B>) {
    let (config, mut network) = teacher::<B>(name);
    let mut config: serde_json::Value = serde_json::from_str(&config.to_json()).expect("JSON");
    config["num_hidden_layers"] = n.into();
    network.backbone.layers.truncate(n);
    let config = ModelConfig::from_json(&config.to_string()).expect("a configuration");
    (config, network)
}

/// One of the sizes of `teacher-llama`, with random weights, whose queries and keys have norms.
pub fn normed_teacher<B: KernelBackend>() -> (ModelConfig, CausalLm<B>) {
    let mut config = LlamaConfig {
        vocab_size: 104,
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        ..LlamaConfig::default_of(LlamaFamily::Qwen3)
    };
    config.attention.n_heads = 4;
    config.attention.n_kv_heads = 2;
    config.attention.head_dim = Some(12);
    let network = CausalLm::init(&config, 3, &Default::default());
    (config.into(), network)
}

fn attention(config: &ModelConfig) -> AttentionConfig {
    match &config.network().mixers[0] {
        MixerConfig::Attention(attention) => attention.clone(),
        _ => panic!("a teacher has attention"),
    }
}

/// The options of a mixer that can take over all of the teacher's attention.
fn options(config: &ModelConfig) -> DiscreteMamba2Config {
    let attention = attention(config);
    DiscreteMamba2Config {
        d_state: attention.head_dim(config.network().d_model),
        bias: attention.dense_bias,
        z_bias: !attention.dense_bias,
        bc_norm: attention.qk_norm,
        chunk_size: 8,
        ..DiscreteMamba2Config::with_heads(attention.n_heads)
    }
}

/// Attention within a window of 4 tokens and one sink, beside such a mixer.
fn beside_window(config: &ModelConfig) -> MixerConfig {
    let window = Window {
        window: 4,
        sinks: 1,
    };
    MixerConfig::BesideAttention(BesideAttentionConfig {
        ssm: options(config),
        attention: Some(AttentionConfig {
            window: Some(window),
            ..attention(config)
        }),
        heads: vec![],
        joined: Joined::Sum,
    })
}

/// The student of a teacher with `mixer`, that starts by `how` on `text`.
fn student<B: KernelBackend>(
    (config, teacher): &(ModelConfig, CausalLm<B>),
    mixer: MixerConfig,
    how: Initialisation,
    text: &[Tensor<B, 2, Int>],
) -> (CausalLm<B>, Vec<model::Fit>) {
    let network = config.network();
    let mixer = how.options_of(mixer, &network.mixers[0], network.d_model);
    let student = config.student(&mixer, &[]).expect("a student");
    // As a file says it.
    let student = ModelConfig::from_json(&student.to_json()).expect("its own file");
    let mut network = CausalLm::init(&student, 5, &Default::default());
    transfer_weights(&mut network, teacher).expect("the sizes fit");
    let fits = how.apply(&mut network, teacher, text, &|| false);
    let fits = fits.expect("a start");
    (network, fits)
}

fn mamba<B: KernelBackend>(model: &CausalLm<B>, layer: usize) -> &DiscreteMamba2<B> {
    model.backbone.layers[layer]
        .mixer
        .mamba()
        .expect("a mixer with a state space")
}

/// Random text for a teacher with so many ids, `[b, l]`.
fn random_text<B: KernelBackend>(
    vocabulary: usize,
    seed: u64,
    [b, l]: [usize; 2],
) -> Tensor<B, 2, Int> {
    let mut state = seed;
    let ids = (0..b * l).map(|_| {
        // Knuth's MMIX generator, of which the high bits are good.
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 33) % vocabulary as u64) as i64
    });
    let data = TensorData::new(ids.collect::<Vec<_>>(), [b, l]);
    Tensor::from_data(data, &Default::default())
}
