//! Every order of a block with every normalisation, MLP and head: the same network in one piece, in pieces
//! and token by token, and gradients that reach all of it.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use kernels::{KernelBackend, Window};
use model::{
    AttentionConfig, BesideAttentionConfig, BlockOrder, CausalLm, DiscreteMamba2Config, FeatureMap,
    HeadConfig, Joined, LowRankConfig, MixerConfig, MixerRotary, MlpConfig, MlpKind, NetworkConfig,
    NormConfig, NormKind, RopeScaling, State, ToeplitzConfig, Turned, pad_vocabulary,
};
use tests::assert_close;
use tests::networks::*;

/// Every combination, with attention whose heads are wider than the model, attention within a window, and a mixer
/// beside them.
pub fn networks() -> Vec<(String, NetworkConfig)> {
    let attention = AttentionConfig {
        n_kv_heads: 1,
        head_dim: Some(12),
        qkv_bias: true,
        dense_bias: false,
        partial_rotary_factor: 1.0,
        ..AttentionConfig::with_heads(2)
    };
    let windowed = AttentionConfig {
        qk_norm: Some(1e-3),
        window: Some(Window {
            window: 3,
            sinks: 2,
        }),
        rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        ..attention.clone()
    };
    let mamba = DiscreteMamba2Config {
        d_state: 8,
        ..DiscreteMamba2Config::with_heads(2)
    };
    let mut all = vec![];
    // Mixers with every option that recorded networks lack, in some of them.
    let rotary = |turned| MixerRotary {
        theta: 100.0,
        scaling: None,
        dim: 4,
        turned,
    };
    let with_options = |turned| DiscreteMamba2Config {
        a_log_bias: true,
        bc_norm: Some(1e-6),
        rotary: Some(rotary(turned)),
        head_dim: Some(6),
        ..mamba.clone()
    };
    let without_norms = DiscreteMamba2Config {
        bc_norm: None,
        ..with_options(Turned::BAndC)
    };
    let beside = |window, joined| BesideAttentionConfig {
        ssm: without_norms.clone(),
        attention: Some(AttentionConfig {
            window,
            ..attention.clone()
        }),
        heads: vec![],
        joined,
    };
    let window = Window {
        window: 3,
        sinks: 1,
    };
    let mixers: Vec<MixerConfig> = vec![
        with_options(Turned::BAndC).into(),
        with_options(Turned::XAndB).into(),
        without_norms.clone().into(),
        beside(Some(window), Joined::Sum).into(),
        beside(None, Joined::Adapter).into(),
        // With fewer taps than there are tokens.
        ToeplitzConfig {
            n_heads: 2,
            head_dim: 6,
            length: 7,
        }
        .into(),
        LowRankConfig {
            n_heads: 2,
            head_dim: 6,
            d_state: 8,
            d_conv: 3,
            chunk_size: 4,
        }
        .into(),
        DiscreteMamba2Config {
            feature_map: FeatureMap::Exp,
            b_gate: true,
            ..without_norms.clone()
        }
        .into(),
        DiscreteMamba2Config {
            feature_map: FeatureMap::Softmax,
            ..with_options(Turned::XAndB)
        }
        .into(),
    ];
    for block_order in [BlockOrder::Parallel, BlockOrder::Sequential] {
        for norm in [NormKind::LayerNorm, NormKind::RmsNorm] {
            for (mlp, bias) in [(MlpKind::GeluNew, true), (MlpKind::SwiGlu, false)] {
                for head in [HeadConfig::Own { bias }, HeadConfig::Tied] {
                    let network = NetworkConfig {
                        vocab_size: 24,
                        d_model: 16,
                        block_order,
                        norm: NormConfig {
                            kind: norm,
                            epsilon: 1e-5,
                        },
                        mlp: MlpConfig {
                            kind: mlp,
                            intermediate_size: 20,
                            bias,
                        },
                        head,
                        mixers: vec![
                            attention.clone().into(),
                            windowed.clone().into(),
                            mamba.clone().into(),
                        ],
                    };
                    let name = format!("{block_order:?}, {norm:?}, {mlp:?}, {head:?}");
                    if head == HeadConfig::Tied && bias {
                        let mixers = mixers.clone();
                        let network = network.clone();
                        let name = format!("{name}, every mixer");
                        all.push((name, NetworkConfig { mixers, ..network }));
                    }
                    all.push((name, network));
                }
            }
        }
    }
    all
}

/// Parameters far from their initial zeros and ones, so that each of them matters.
pub fn random<B: KernelBackend>(network: &NetworkConfig) -> CausalLm<B> {
    /// A separate random generator, because other tests draw from the backend's generator at the same time.
    struct Random(u64);
    impl<B: KernelBackend> ModuleMapper<B> for Random {
        fn map_float<const D: usize>(
            &mut self,
            parameter: Param<Tensor<B, D>>,
        ) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let seed = self.0;
            parameter.map(|x| {
                let (shape, noise) = tests::random(seed, &x.dims(), 0.5);
                let noise = Tensor::from_data(TensorData::new(noise, shape), &x.device());
                (x + noise).detach().require_grad()
            })
        }
    }
    CausalLm::init(network.clone(), 7, &Default::default()).map(&mut Random(5))
}

pub fn tokens<B: KernelBackend>() -> Tensor<B, 2, Int> {
    let ids: Vec<i32> = (0..22).map(|i| 7 * i % 24).collect();
    Tensor::from_data(TensorData::new(ids, [2, 11]), &Default::default())
}

/// The tensors of a state of constant size, with their names.
fn recurrent<B: KernelBackend>(state: &State<B>) -> Vec<(String, tests::Values)> {
    let tensors = state.to_tensors().expect("tensors").into_iter();
    let is_recurrent = |name: &str| {
        let parts = ["conv", "ssm", "inputs", "sums"];
        parts.iter().any(|part| name.ends_with(part))
    };
    tensors
        .filter(|(name, _)| is_recurrent(name))
        .map(|(name, data)| {
            let data = data.convert::<f64>();
            (name, (data.shape.to_vec(), data.to_vec().expect("floats")))
        })
        .collect()
}

fn pieces_are_the_whole<B: KernelBackend>(tolerance: f64) {
    let device = Default::default();
    for (name, network) in networks() {
        let model = random::<B>(&network);
        let whole = values(model.logits(model.features(tokens())));
        let mut at_once = model.new_state(2, &device);
        model.prefill(tokens(), &mut at_once);
        for prompt in [1, 4, 11] {
            let mut state = model.new_state(2, &device);
            let first = tokens().narrow(1, 0, prompt);
            let mut logits = vec![model.prefill_all(first, &mut state)];
            for i in prompt..11 {
                let next = tokens().narrow(1, i, 1).reshape([2]);
                logits.push(model.step(next, &mut state).unsqueeze_dim(1));
            }
            let logits: Tensor<B, 3> = Tensor::cat(logits, 1);
            let name = format!("{name}: after {prompt}");
            assert_close(&name, values(logits), whole.clone(), tolerance);
            let states = recurrent(&state).into_iter().zip(recurrent(&at_once));
            for ((part, found), (_, expected)) in states {
                assert_close(&format!("{name}: {part}"), found, expected, tolerance);
            }
        }
    }
}

on_both! {
    pieces_are_the_whole(1e-11, 2e-4);
}

/// Rows of a batch, and weights in 8 bits.
#[test]
fn rows_and_bytes() {
    let device = Default::default();
    for (name, network) in networks() {
        let model = random::<Fast>(&network);
        let mut state = model.new_state(1, &device);
        model.prefill(tokens().narrow(0, 0, 1).narrow(1, 0, 10), &mut state);
        let mut batch = model.new_batch(2, &device);
        batch.put(1, state.clone());
        let next = tokens().narrow(0, 0, 1).narrow(1, 10, 1).reshape([1]);
        let both = Tensor::cat(vec![next.clone(), next.clone()], 0);
        let row = model.step_batch(both, &mut batch).narrow(0, 1, 1);
        let alone = model.step(next.clone(), &mut state.clone());
        assert_close(&name, values(row), values(alone.clone()), 2e-5);

        let int8 = model.clone().to_int8();
        assert!(int8.step_bytes() < model.step_bytes(), "{name}");
        let rounded = int8.step(next, &mut state.clone());
        assert_close(&name, values(rounded), values(alone), 0.1);
    }
}

/// Of every parameter that is there, finite and not zero.
#[test]
fn gradients_reach_everything() {
    type B = Autodiff<Exact>;
    for (name, network) in networks() {
        let model = random::<B>(&network);
        let logits = model.logits(model.features(tokens()));
        let loss = logits.powi_scalar(2).mean();
        let found = gradients(&model, &loss.backward());
        let layouts = model::named_parameters(&model, model::Layout::default());
        for parameter in layouts {
            let path = format!("{name}: {}", parameter.path);
            let gradient = found.iter().find(|(id, _)| *id == parameter.id);
            let (_, (_, gradient)) = gradient.unwrap_or_else(|| panic!("{path} has no gradient"));
            assert!(gradient.iter().all(|value| value.is_finite()), "{path}");
            assert!(gradient.iter().any(|value| *value != 0.0), "{path}");
        }
    }
}

/// Ids that pad a vocabulary have no probability with any head.
#[test]
fn padding_has_no_probability() {
    for (name, network) in networks() {
        let model = random::<Exact>(&network);
        let padded = pad_vocabulary(model.clone(), 32);
        let softmax = |model: &CausalLm<Exact>| {
            let logits = model.logits(model.features(tokens()));
            burn::tensor::activation::softmax(logits, 2)
        };
        let (found, expected) = (softmax(&padded), softmax(&model));
        assert_eq!(found.dims()[2], 32, "{name}");
        let known = found.narrow(2, 0, 24);
        assert_close(&name, values(known), values(expected), 1e-12);
    }
}
