//! Parameters that do not come from a file: how each is drawn.
//!
//! Values are drawn on the host from SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), so that a seed gives the
//! same network on every backend. Drawing is lazy: a parameter that is loaded or copied before it is read
//! is never drawn, which for most of a student is always.
//!
//! The constructor of each layer documents its initial values. The layers that a student copies from its teacher are
//! initialised as in Hugging Face's models: normal weights with a standard deviation of 0.02, biases 0, normalisation
//! weights 1.

use std::f64::consts::TAU;

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Standard deviation of the initial weights of Hugging Face's models.
pub(crate) const DEVIATION: f64 = 0.02;

/// What a parameter is filled with, row-major.
#[derive(Debug, Clone)]
pub(crate) enum Fill {
    /// This pattern over and over.
    Repeat(Vec<f64>),
    /// Uniform between minus and plus the bound.
    Uniform(f64),
    /// Normal around 0 with this standard deviation.
    Normal(f64),
    /// So many elements of one fill, then so many of the next.
    Parts(Vec<(usize, Fill)>),
}

impl Fill {
    pub(crate) fn constant(value: f64) -> Self {
        Self::Repeat(vec![value])
    }

    /// PyTorch's default for the weight and the bias of a `Linear` with `d_in` inputs.
    pub(crate) fn torch_linear(d_in: usize) -> Self {
        Self::Uniform(1.0 / (d_in as f64).sqrt())
    }

    /// Small normal weights.
    pub(crate) fn small_normal() -> Self {
        Self::Normal(DEVIATION)
    }

    /// Appends `n` elements to `values`.
    fn draw(&self, n: usize, random: &mut SplitMix64, values: &mut Vec<f32>) {
        match self {
            Self::Repeat(pattern) => {
                values.extend(pattern.iter().cycle().take(n).map(|v| *v as f32));
            }
            Self::Uniform(bound) => {
                values.extend((0..n).map(|_| ((2.0 * unit(random) - 1.0) * bound) as f32));
            }
            Self::Normal(deviation) => {
                values.extend((0..n).map(|_| (normal(random) * deviation) as f32));
            }
            Self::Parts(parts) => {
                for (n, fill) in parts {
                    fill.draw(*n, random, values);
                }
            }
        }
    }
}

/// Makes parameters, each from another seed.
pub(crate) struct Init<'a, B: Backend> {
    seed: u64,
    seeds: SplitMix64,
    device: &'a B::Device,
}

impl<'a, B: Backend> Init<'a, B> {
    pub(crate) fn new(seed: u64, device: &'a B::Device) -> Self {
        let seeds = SplitMix64::seed_from_u64(seed);
        Self {
            seed,
            seeds,
            device,
        }
    }

    /// The source of one part of the network. Its draws do not depend on the parts that were made before it.
    pub(crate) fn part(&self, index: usize) -> Self {
        let seed = self.seed ^ (index as u64 + 1).rotate_left(32);
        Self::new(SplitMix64::seed_from_u64(seed).next_u64(), self.device)
    }

    pub(crate) fn parameter<const D: usize>(
        &mut self,
        shape: [usize; D],
        fill: Fill,
    ) -> Param<Tensor<B, D>> {
        let seed = self.seeds.next_u64();
        let draw = move |device: &B::Device, require_grad| {
            let n = shape.iter().product();
            let mut values = Vec::with_capacity(n);
            fill.draw(n, &mut SplitMix64::seed_from_u64(seed), &mut values);
            Tensor::from_data(TensorData::new(values, shape), device).set_require_grad(require_grad)
        };
        Param::uninitialized(
            ParamId::new(),
            draw,
            self.device.clone(),
            true,
            shape.into(),
        )
    }
}

/// Uniform in `[0, 1)`.
fn unit(random: &mut SplitMix64) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal, by Box and Muller's transformation (its cosine half).
fn normal(random: &mut SplitMix64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(random)).ln()).sqrt();
    radius * (TAU * unit(random)).cos()
}

#[cfg(test)]
mod tests {
    use super::{Fill, SeedableRng, SplitMix64};

    fn drawn(fill: Fill, n: usize) -> Vec<f32> {
        let mut values = Vec::new();
        fill.draw(n, &mut SplitMix64::seed_from_u64(7), &mut values);
        values
    }

    fn mean_and_deviation(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = |v: &f32| (f64::from(*v) - mean).powi(2);
        (mean, (values.iter().map(square).sum::<f64>() / n).sqrt())
    }

    // The standard error of a mean of 10^5 draws is 0.003 deviations: five of them are allowed.
    #[test]
    fn draws_have_the_stated_moments() {
        let (mean, deviation) = mean_and_deviation(&drawn(Fill::Normal(2.0), 100_000));
        assert!(mean.abs() < 0.03 && (deviation - 2.0).abs() < 0.03);
        let (mean, deviation) = mean_and_deviation(&drawn(Fill::Uniform(2.0), 100_000));
        assert!(mean.abs() < 0.03 && (deviation - 2.0 / 3f64.sqrt()).abs() < 0.03);
    }

    #[test]
    fn parts_follow_one_another() {
        let parts = Fill::Parts(vec![
            (2, Fill::constant(1.0)),
            (3, Fill::Repeat(vec![0.0, 5.0])),
        ]);
        assert_eq!(drawn(parts, 5), [1.0, 1.0, 0.0, 5.0, 0.0]);
    }
}
