//! A [`Collective`] for any backend, through the memory of the host.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::{Collective, InFlight, Place};

/// What can exchange numbers between the ranks. Sums are made in the order of the ranks, so that they depend on
/// nothing else.
pub trait Exchange: Send + Sync {
    /// Which of the ranks this is.
    fn place(&self) -> Place;

    /// What carries the numbers.
    fn name(&self) -> String;

    /// This rank's part of the sum over all ranks of `x`, whose length the world divides.
    fn reduce_scatter(&self, x: &[f32]) -> Vec<f32>;

    /// The `x` of all ranks, one behind the other.
    fn all_gather(&self, x: &[f32]) -> Vec<f32>;

    /// Makes `x` that of rank 0.
    fn broadcast(&self, x: &mut [f32]);
}

/// Sums the parts in `all`, one of `length` for each rank, in their order.
pub(super) fn sum<'a>(length: usize, mut parts: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum = parts.next().map_or(vec![0.0; length], <[f32]>::to_vec);
    for part in parts {
        for (sum, x) in sum.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sum
}

/// [`Exchange`] as a [`Collective`].
pub struct OnHost<E>(pub E);

impl<E: Exchange> OnHost<E> {
    /// The sum over all ranks of `x`, whatever its length.
    fn all_reduce(&self, mut x: Vec<f32>) -> Vec<f32> {
        let length = x.len();
        x.resize(length.next_multiple_of(self.0.place().world), 0.0);
        let mut all = self.0.all_gather(&self.0.reduce_scatter(&x));
        all.truncate(length);
        all
    }
}

/// The values of `x`.
///
/// # Panics
/// If they are not f32.
fn values<B: Backend>(x: Tensor<B, 1>) -> Vec<f32> {
    let data = x.into_data();
    assert_eq!(data.dtype, DType::F32, "a collective's tensors are f32");
    let values = data.into_vec();
    values.unwrap_or_else(|error| panic!("the values of a tensor: {error:?}"))
}

fn arrived<B: Backend>(values: Vec<f32>, device: &B::Device) -> InFlight<B> {
    let shape = [values.len()];
    InFlight::done(Tensor::from_data(TensorData::new(values, shape), device))
}

impl<B: Backend, E: Exchange> Collective<B> for OnHost<E> {
    fn place(&self) -> Place {
        self.0.place()
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn all_reduce(&self, x: Tensor<B, 1>) -> InFlight<B> {
        let device = x.device();
        arrived(OnHost::all_reduce(self, values(x)), &device)
    }

    fn reduce_scatter(&self, x: Tensor<B, 1>) -> InFlight<B> {
        let device = x.device();
        arrived(self.0.reduce_scatter(&values(x)), &device)
    }

    fn all_gather(&self, x: Tensor<B, 1>) -> InFlight<B> {
        let device = x.device();
        arrived(self.0.all_gather(&values(x)), &device)
    }

    fn broadcast(&self, x: Tensor<B, 1>) -> InFlight<B> {
        let device = x.device();
        let mut values = values(x);
        self.0.broadcast(&mut values);
        arrived(values, &device)
    }
}
