//! One attention layer turned into a Discrete-Mamba-2 mixer by the first two stages of MOHAWK
//! (arXiv 2408.10189): its mixing matrix is brought towards the attention matrix, then its output towards
//! attention's output.
//!
//! `cargo run -p model --example convert_layer` runs it on the CPU; `convert` itself takes any backend of
//! `kernels` under Burn's `Autodiff`.

use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Distribution, ElementConversion, Tensor};
use burn_flex::Flex;
use kernels::{AttentionParts, TrainBackend};
use model::mohawk::hidden_state_loss;
use model::{
    Attention, AttentionConfig, ConfigError, DiscreteMamba2, DiscreteMamba2Config, TokenMixer,
};

const D_MODEL: usize = 64;
const HEADS: usize = 4;
/// Sequences, tokens, width.
const SHAPE: [usize; 3] = [4, 32, D_MODEL];
const STEPS: usize = 30;
const LEARNING_RATE: f64 = 5e-3;

/// Trains `mixer` for [`STEPS`] batches of random inputs, and prints some of the values of `loss`; returns
/// the first and the last.
fn stage<B: TrainBackend>(
    name: &str,
    mixer: &mut DiscreteMamba2<B>,
    loss: impl Fn(&DiscreteMamba2<B>, Tensor<B::InnerBackend, 3>) -> Tensor<B, 1>,
    device: &B::Device,
) -> (f32, f32) {
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = vec![];
    for step in 0..STEPS {
        let x = Tensor::random(SHAPE, Distribution::Normal(0.0, 1.0), device);
        let loss = loss(mixer, x);
        let value: f32 = loss.clone().into_scalar().elem();
        if step % 5 == 0 || step + 1 == STEPS {
            println!("{name}, step {step:2}: {value:.4}");
        }
        losses.push(value);
        let gradients = GradientsParams::from_grads(loss.backward(), mixer);
        *mixer = optimizer.step(LEARNING_RATE, mixer.clone(), gradients);
    }
    (losses[0], losses[STEPS - 1])
}

fn convert<B: TrainBackend>(device: &B::Device) -> Result<(), ConfigError> {
    B::seed(device, 1);
    // The teacher is not trained: it computes on the backend without gradients.
    let options = AttentionConfig::with_heads(HEADS);
    let teacher = Attention::<B::InnerBackend>::new(&options, D_MODEL, 1, device)?;
    let options = DiscreteMamba2Config {
        d_state: 16,
        ..DiscreteMamba2Config::with_heads(HEADS)
    };
    let mut mixer = DiscreteMamba2::<B>::new(&options, D_MODEL, 2, device)?;

    // Both matrices are given by their factors, and are never held as a whole.
    let matrices = |mixer: &DiscreteMamba2<B>, x: Tensor<B::InnerBackend, 3>| {
        let AttentionParts { q, k, window, .. } =
            teacher.attention_parts(x.clone()).expect("attention");
        let attention = AttentionParts {
            q: Tensor::from_inner(q),
            k: Tensor::from_inner(k),
            window,
            documents: None,
        };
        let transfer = mixer.transfer_parts(Tensor::from_inner(x));
        kernels::mixing_distance(transfer.expect("a state-space mixer"), attention)
    };
    let (first, last) = stage("stage 1, matrices", &mut mixer, matrices, device);
    assert!(last < first, "stage 1 did not come nearer");

    let hidden_states = |mixer: &DiscreteMamba2<B>, x: Tensor<B::InnerBackend, 3>| {
        let target = Tensor::from_inner(teacher.forward(x.clone()));
        hidden_state_loss(mixer.forward(Tensor::from_inner(x)), target)
    };
    let (first, last) = stage("stage 2, hidden states", &mut mixer, hidden_states, device);
    assert!(last < first, "stage 2 did not come nearer");
    Ok(())
}

fn main() -> Result<(), ConfigError> {
    convert::<Autodiff<Flex>>(&Default::default())
}

/// With the tests: `cargo test -p model --examples`.
#[test]
fn runs() {
    main().unwrap();
}
