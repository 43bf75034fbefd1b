//! Parameters that do not come from a file: how each is drawn.
//!
//! Values are drawn on the host from a small generator of our own, so that a seed gives the same
//! network on every backend. Drawing is lazy: a parameter that is loaded or copied before it is read
//! is never drawn, which for most of a student is always.
//!
//! How each layer starts stands at its constructor; what a student copies from its teacher starts as
//! Hugging Face's models do: normal weights of deviation 0.02, biases 0, normalisation weights 1.

use std::f64::consts::TAU;

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

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
                values.extend((0..n).map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32));
            }
            Self::Normal(deviation) => {
                values.extend((0..n).map(|_| (random.normal() * deviation) as f32));
            }
            Self::Parts(parts) => {
                for (n, fill) in parts {
                    fill.draw(*n, random, values);
                }
            }
        }
    }
}

/// Makes parameters, each with a seed of its own.
pub(crate) struct Init<'a, B: Backend> {
    seeds: SplitMix64,
    device: &'a B::Device,
}

impl<'a, B: Backend> Init<'a, B> {
    pub(crate) fn new(seed: u64, device: &'a B::Device) -> Self {
        let seeds = SplitMix64(seed);
        Self { seeds, device }
    }

    /// For one part of the network, so that its draws do not depend on what was made before it.
    pub(crate) fn part(&self, index: usize) -> Self {
        let mut seeds = SplitMix64(self.seeds.0 ^ (index as u64 + 1).rotate_left(32));
        Self {
            seeds: SplitMix64(seeds.next()),
            device: self.device,
        }
    }

    pub(crate) fn parameter<const D: usize>(
        &mut self,
        shape: [usize; D],
        fill: Fill,
    ) -> Param<Tensor<B, D>> {
        let seed = self.seeds.next();
        let draw = move |device: &B::Device, require_grad| {
            let n = shape.iter().product();
            let mut values = Vec::with_capacity(n);
            fill.draw(n, &mut SplitMix64(seed), &mut values);
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

/// What SplitMix64 adds to its counter for each number.
pub(crate) const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// What SplitMix64 gives for a counter: every bit of `x` spread over all 64.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Steele, Lea and Flood's generator (OOPSLA 2014): a counter and a mixing function, enough for
/// initial weights and the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STRIDE);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller's transformation (its cosine half).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::{Fill, SplitMix64};

    fn drawn(fill: Fill, n: usize) -> Vec<f32> {
        let mut values = Vec::new();
        fill.draw(n, &mut SplitMix64(7), &mut values);
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
