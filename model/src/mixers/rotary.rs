//! Rotary position embedding of the first dimensions of each head, as in Phi.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::VecDeque;

use burn::tensor::backend::{Backend, DeviceId, DeviceOps};
use burn::tensor::{Tensor, TensorData};
use kernels::KernelBackend;

/// Runs of positions whose angles a thread keeps: as many as the sequences of a batch that take a step
/// together, each at its own position.
const KEPT: usize = 16;

/// What angles depend on.
#[derive(PartialEq)]
struct Key {
    backend: TypeId,
    device: DeviceId,
    dim: usize,
    theta: f64,
    start: usize,
    l: usize,
}

thread_local! {
    /// The angles that this thread has made last: every layer of a pass asks for the same.
    static MADE: RefCell<VecDeque<(Key, Box<dyn Any>)>> = const { RefCell::new(VecDeque::new()) };
}

/// The angles for a run of positions.
///
/// Pairs are `(i, i + dim / 2)` for `i < dim / 2`, each turned by `position * theta^(-2i / dim)`.
#[derive(Clone)]
pub(crate) struct Rotary<B: Backend> {
    /// `[l, dim / 2]`.
    pub cos: Tensor<B, 2>,
    /// `[l, dim / 2]`.
    pub sin: Tensor<B, 2>,
}

impl<B: KernelBackend> Rotary<B> {
    /// For positions `start..start + l`. The angles are computed in 64 bits on the host: in 32, the
    /// product of a late position and a frequency has lost four digits before its cosine is taken.
    pub(crate) fn new(dim: usize, theta: f64, start: usize, l: usize, device: &B::Device) -> Self {
        let key = Key {
            backend: TypeId::of::<B>(),
            device: device.id(),
            dim,
            theta,
            start,
            l,
        };
        MADE.with_borrow_mut(|made| {
            let known = made.iter().find(|(other, _)| *other == key);
            if let Some(angles) = known.and_then(|(_, angles)| angles.downcast_ref::<Self>()) {
                return angles.clone();
            }
            let angles = Self::make(dim, theta, start, l, device);
            made.truncate(KEPT - 1);
            made.push_front((key, Box::new(angles.clone())));
            angles
        })
    }

    fn make(dim: usize, theta: f64, start: usize, l: usize, device: &B::Device) -> Self {
        let half = dim / 2;
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / dim as f64);
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let (mut cos, mut sin) = (Vec::with_capacity(l * half), Vec::with_capacity(l * half));
        for position in start..start + l {
            for frequency in &frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [l, half]), device);
        Self {
            cos: tensor(cos),
            sin: tensor(sin),
        }
    }

    /// `x [b, l, h, p]` with the first `dim` of each head's `p` dimensions turned.
    pub(crate) fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        kernels::rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// [`rotate`](Self::rotate) for the first `heads` heads, in place if nothing else holds `x`.
    pub(crate) fn rotate_heads(&self, x: Tensor<B, 4>, heads: usize) -> Tensor<B, 4> {
        kernels::rotary_of_heads(x, self.cos.clone(), self.sin.clone(), heads)
    }
}
