//! A Discrete-Mamba-2 layer in a plain Burn loop, with Burn's own optimizer: ten steps towards an output
//! that needs memory, the running mean of the input.
//!
//! `cargo run -p model --example ssd_layer` runs it on the CPU; `train` itself takes any backend of
//! `kernels` under Burn's `Autodiff`.

use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Distribution, ElementConversion, Tensor};
use burn_flex::Flex;
use kernels::TrainBackend;
use model::{ConfigError, DiscreteMamba2, DiscreteMamba2Config, TokenMixer};

const D_MODEL: usize = 64;
/// Sequences, tokens, width.
const SHAPE: [usize; 3] = [8, 32, D_MODEL];
const STEPS: usize = 10;
const LEARNING_RATE: f64 = 1e-2;

/// The loss before each step, and after the last.
fn train<B: TrainBackend>(device: &B::Device) -> Result<Vec<f32>, ConfigError> {
    B::seed(device, 1);
    let config = DiscreteMamba2Config {
        d_state: 16,
        ..DiscreteMamba2Config::with_heads(4)
    };
    let mut layer = DiscreteMamba2::<B>::new(&config, D_MODEL, 1, device)?;
    let mut optimizer = AdamWConfig::new().init();
    let x = Tensor::<B, 3>::random(SHAPE, Distribution::Normal(0.0, 1.0), device);
    let tokens = Tensor::<B, 3>::ones(SHAPE, device).cumsum(1);
    let running_mean = x.clone().cumsum(1) / tokens;

    let loss_of = |layer: &DiscreteMamba2<B>| {
        let error = layer.forward(x.clone()) - running_mean.clone();
        error.powi_scalar(2).mean()
    };
    let mut losses = vec![];
    for _ in 0..STEPS {
        let loss = loss_of(&layer);
        losses.push(loss.clone().into_scalar().elem());
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(LEARNING_RATE, layer, gradients);
    }
    losses.push(loss_of(&layer).into_scalar().elem());
    Ok(losses)
}

fn main() -> Result<(), ConfigError> {
    let losses = train::<Autodiff<Flex>>(&Default::default())?;
    for (step, loss) in losses.iter().enumerate() {
        println!("step {step:2}: loss {loss:.4}");
    }
    assert!(losses[STEPS] < 0.5 * losses[0], "the loss did not fall");
    Ok(())
}

/// With the tests: `cargo test -p model --examples`.
#[test]
fn runs() {
    main().unwrap();
}
