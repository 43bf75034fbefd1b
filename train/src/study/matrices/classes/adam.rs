//! Fits by Adam on the squared distances of all matrices at the same time. Each matrix has its own parameters.

use std::f64::consts::TAU;
use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::{AdamWStep, TrainBackend, adamw_step};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::{Budget, Fitted, Point, distances};

/// The number of points in a trace before the last one.
const POINTS: usize = 20;

/// Approximations of `targets [m, l, l]` by the function `matrices` of parameters `[m, ..]`, which start at `start`;
/// `None` if asked to stop.
///
/// Adam treats each parameter independently, so minimising the sum over matrices fits each matrix as if it were the
/// only one.
pub(super) fn fit<B: TrainBackend>(
    targets: &Tensor<B::InnerBackend, 3>,
    start: Vec<Tensor<B::InnerBackend, 3>>,
    matrices: impl Fn(&[Tensor<B, 3>]) -> Tensor<B, 3>,
    budget: &Budget,
) -> Option<Fitted<B::InnerBackend>> {
    let started = Instant::now();
    let read_every = budget.steps.div_ceil(POINTS).max(1);
    let device = targets.device();
    let one = Tensor::<B::InnerBackend, 1>::ones([1], (&device, targets.dtype()));
    let wanted = Tensor::<B, 3>::from_inner(targets.clone());
    let mut trace = vec![];
    let moments = |x: &Tensor<B::InnerBackend, 3>| [x.zeros_like(), x.zeros_like()];
    let mut parameters: Vec<_> = start.into_iter().map(|x| (moments(&x), x)).collect();
    for step in 0..budget.steps {
        if (budget.stop)() {
            return None;
        }
        let leaf = |(_, x): &(_, Tensor<B::InnerBackend, 3>)| {
            Tensor::<B, 3>::from_inner(x.clone()).require_grad()
        };
        let leaves: Vec<_> = parameters.iter().map(leaf).collect();
        let difference = matrices(&leaves) - wanted.clone();
        if step % read_every == 0 {
            trace.push(Point {
                step,
                distances: distances(difference.clone().inner()),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        let gradients = (difference.clone() * difference).sum().backward();
        let adam = AdamWStep {
            lr: budget.lr,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            time: step as u64 + 1,
        };
        let each = parameters.into_iter().zip(&leaves);
        let stepped = each.map(|((moments, x), leaf)| {
            let gradient = leaf.grad(&gradients).unwrap_or_else(|| x.zeros_like());
            let (x, moments) = adamw_step(x, gradient, moments, one.clone(), adam);
            (moments, x)
        });
        parameters = stepped.collect();
    }
    let last: Vec<_> = parameters
        .into_iter()
        .map(|(_, x)| Tensor::<B, 3>::from_inner(x))
        .collect();
    let nearest = matrices(&last).inner();
    trace.push(Point {
        step: budget.steps,
        distances: distances(nearest.clone() - targets.clone()),
        seconds: started.elapsed().as_secs_f64(),
    });
    Some(Fitted {
        matrices: nearest,
        trace,
    })
}

/// Normal numbers from a seed, drawn on the host: the same on every backend.
pub(super) struct Normal(SplitMix64);

impl Normal {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    /// A tensor of such numbers with the mean `mean` and this deviation, with the device and the dtype of `like`.
    pub(super) fn tensor<B: Backend>(
        &mut self,
        shape: [usize; 3],
        [mean, deviation]: [f64; 2],
        like: &Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|_| (mean + deviation * self.draw()) as f32)
            .collect();
        let options = (&like.device(), like.dtype());
        Tensor::from_data(TensorData::new(values, shape), options)
    }

    /// By Box and Muller's transformation (its cosine half).
    fn draw(&mut self) -> f64 {
        let mut uniform = || (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        radius * (TAU * uniform()).cos()
    }
}
