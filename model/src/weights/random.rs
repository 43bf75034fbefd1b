//! Writes a teacher with random weights of the right shapes, for measurements without a trained model.
//!
//! A sequential random generator takes minutes for a billion numbers. Here each number is a hash of its index, so that
//! all cores can draw numbers at the same time, and the result does not depend on the number of cores.

use std::borrow::Cow;
use std::path::Path;

use burn::tensor::backend::Backend;
use half::bf16;
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use safetensors::{Dtype, View};

use super::{WeightsError, write};
use crate::arch::Family;
use crate::init::DEVIATION;
use crate::lm::CausalLm;
use crate::parameters::{NamedParameter, named_parameters};

/// Bytes of a shard, about.
const SHARD: usize = 1 << 30;

/// Writes a model with random weights as transformers loads it: `config.json`, and bf16 shards of about
/// a GiB with their index. Matrices are drawn around 0 with a deviation of 0.02, norms are 1
/// and biases 0; the same for the same `config` on every machine. Of the values, one tensor's are in memory
/// at a time. The folder is made if need be.
///
/// # Errors
/// [`WeightsError::Io`] or [`WeightsError::Manifest`] if a file cannot be written.
pub fn save_random_teacher<B: Backend>(
    config: &impl Family,
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<(), WeightsError> {
    // Its parameters are drawn when they are first read, which does not happen here.
    let network = CausalLm::<B>::init(config, 0, device);
    let names = named_parameters(&network, config.layout());
    let drawn = names.into_iter().enumerate();
    let drawn = drawn.map(|(i, parameter)| (parameter.name.clone(), Drawn::new(i, parameter)));
    write::shards(folder.as_ref(), drawn.collect(), SHARD, config)?;
    Ok(())
}

/// One tensor in bf16, drawn when the writer comes to it.
struct Drawn {
    shape: Vec<usize>,
    fill: Fill,
}

enum Fill {
    Constant(f32),
    /// Around 0, from this place in the sequence of numbers on.
    Normal(u64),
}

impl Drawn {
    /// Parameter number `i`.
    fn new(i: usize, parameter: NamedParameter) -> Self {
        let fill = match (parameter.shape.len(), parameter.name.ends_with(".weight")) {
            (1, true) => Fill::Constant(1.0),
            (1, false) => Fill::Constant(0.0),
            _ => Fill::Normal((i as u64) << 40),
        };
        Self {
            shape: parameter.shape,
            fill,
        }
    }
}

impl View for Drawn {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        bytes
            .par_chunks_exact_mut(2)
            .with_min_len(1 << 14)
            .enumerate()
            .for_each(|(i, number)| {
                let value = match self.fill {
                    Fill::Constant(value) => value,
                    Fill::Normal(first) => DEVIATION as f32 * normal(first + i as u64),
                };
                number.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
            });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// A number of mean 0 and deviation 1, near enough to normal: a sum of four that are uniform.
fn normal(place: u64) -> f32 {
    let bits = SplitMix64::seed_from_u64(place).next_u64();
    let quarters = [0, 16, 32, 48].map(|shift| ((bits >> shift) & 0xffff) as f32);
    // Each quarter is uniform below 2^16, so of variance 2^32 / 12.
    let sum: f32 = quarters.iter().sum();
    (sum - 2.0 * 65535.0) / 65536.0 * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_enough() {
        let all: Vec<f64> = (0..1 << 16).map(|i| normal(i << 8).into()).collect();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        // Deviations of the two estimates are 1 / 256 and about as much.
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
        let beyond = all.iter().filter(|x| x.abs() > 2.0).count() as f64 / n;
        assert!((0.03..0.06).contains(&beyond), "{beyond}");
    }
}
