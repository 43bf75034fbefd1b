//! The rate of a matrix product alone, as the reference for the rate of a step.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{DType, Distribution, Tensor};
use kernels::KernelBackend;
use kernels::runtime::synchronise;
use serde::Serialize;

use crate::error::TrainError;

/// Operations a second that a product of matrices reaches.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct MatmulRate(pub(super) f64);

impl MatmulRate {
    /// The best of several rounds of `[t, 2048]` by `[2048, 8192]` in `dtype`, the product of Phi-1.5's MLP. `t` is
    /// 8192 tokens, or 512 on a CPU, which reaches its full rate with fewer tokens and would take long for more.
    pub(super) fn measure<B: KernelBackend>(
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let (t, d, m) = (if B::queues() { 8192 } else { 512 }, 2048, 8192);
        let small = Distribution::Uniform(-1.0, 1.0);
        let matrix = |shape: [usize; 2]| Tensor::<B, 2>::random(shape, small, device).cast(dtype);
        let (x_td, weight_md) = (matrix([t, d]), matrix([m, d]));
        let round = if B::queues() { 20 } else { 1 };
        let mut best = f64::INFINITY;
        for _ in 0..6 {
            synchronise::<B>(device)?;
            let begun = Instant::now();
            for _ in 0..round {
                black_box(kernels::linear(x_td.clone(), weight_md.clone(), None));
            }
            synchronise::<B>(device)?;
            best = best.min(begun.elapsed().as_secs_f64() / f64::from(round));
        }
        Ok(Self(2.0 * (t * d * m) as f64 / best))
    }
}
