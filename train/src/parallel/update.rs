//! The optimizer's step where each rank updates its share of every parameter.

use std::collections::{HashMap, VecDeque};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::optim::adamw::Update;
use kernels::runtime::collective::InFlight;
use kernels::{KernelBackend, TrainBackend};
use model::PhiMamba;

use super::flat::of_its_own;
use super::reduce::IN_FLIGHT;
use super::{Bucket, Sharing, share};
use crate::gradients::Gradients;
use crate::optimizer::{AdamW, Moments, Put};

/// A parameter that was taken out of the student.
struct Whole<B: Backend> {
    /// Flat.
    value: Tensor<B, 1>,
    dimensions: usize,
}

impl<B: KernelBackend> Sharing<B> {
    /// [`AdamW::step`] by shares: `own` are this rank's shares of the gradients, of which `ids` are all on every rank. The
    /// student is whole on every rank afterwards.
    pub(crate) fn step<A: TrainBackend<InnerBackend = B>>(
        &self,
        optimizer: &mut AdamW<B>,
        student: PhiMamba<A>,
        (ids, mut own): (&[ParamId], Gradients<B>),
        scale: Tensor<B, 1>,
        lr: impl Fn(ParamId) -> Option<f64>,
    ) -> PhiMamba<A> {
        let place = self.ranks.place();
        let device = scale.device();
        let mut all = TakeWhole {
            ids,
            found: HashMap::new(),
        };
        let student = student.map(&mut all);
        let mut values = HashMap::new();
        let mut arrived = |(bucket, gathered): (Bucket, InFlight<B>)| {
            let whole = bucket.unpack(gathered.wait(), place.world).into_iter();
            let whole = whole.map(of_its_own);
            values.extend(bucket.0.iter().map(|entry| entry.id).zip(whole));
        };
        let mut in_flight = VecDeque::new();
        for bucket in self.buckets(ids) {
            let mut shares = vec![];
            let (mut places, mut updates) = (vec![], vec![]);
            for entry in &bucket.0 {
                let whole = all.found.remove(&entry.id);
                let whole = whole.expect("the student has each parameter of a bucket");
                let range = share(entry.elements, place);
                if range.is_empty() {
                    shares.push(None);
                    continue;
                }
                let parameter = whole.value.slice([range]);
                let (Some(gradient), Some(lr)) = (own.take(entry.id), lr(entry.id)) else {
                    shares.push(Some(parameter));
                    continue;
                };
                let moments = optimizer.moments.remove(&entry.id);
                let Moments { values, time } = moments.unwrap_or_else(|| Moments {
                    values: [parameter.zeros_like(), parameter.zeros_like()],
                    time: 0,
                });
                places.push((entry.id, shares.len(), time + 1));
                shares.push(None);
                updates.push(Update {
                    parameter,
                    gradient,
                    moments: values,
                    step: optimizer.numbers(lr, whole.dimensions, time + 1),
                });
            }
            let updated = if updates.is_empty() {
                vec![]
            } else {
                kernels::adamw_steps(updates, scale.clone())
            };
            for ((id, at, time), (value, moments)) in places.into_iter().zip(updated) {
                shares[at] = Some(value);
                let moments = Moments {
                    values: moments,
                    time,
                };
                optimizer.moments.insert(id, moments);
            }
            let part = bucket.fill(shares, place, &device);
            let gathered = self.ranks.collective().all_gather(part);
            in_flight.push_back((bucket, gathered));
            if in_flight.len() == IN_FLIGHT
                && let Some(oldest) = in_flight.pop_front()
            {
                arrived(oldest);
            }
        }
        in_flight.into_iter().for_each(arrived);
        student.map(&mut Put(values))
    }
}

/// Takes parameters out of the student, flat, so that nothing else holds them, and leaves one element in place of each.
struct TakeWhole<'a, B: Backend> {
    ids: &'a [ParamId],
    found: HashMap<ParamId, Whole<B>>,
}

impl<A: TrainBackend> ModuleMapper<A> for TakeWhole<'_, A::InnerBackend> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        if !self.ids.contains(&parameter.id) {
            return parameter;
        }
        let (id, value, mapper) = parameter.consume();
        let shape = value.dims();
        let value = value.inner().reshape([shape.iter().product::<usize>()]);
        // A view of the whole shape that takes no memory: [`Put`] reads the shape from it.
        let place = Tensor::<A::InnerBackend, D>::empty([1; D], &value.device());
        let whole = Whole {
            value,
            dimensions: D,
        };
        self.found.insert(id, whole);
        Param::from_mapped_value(id, Tensor::from_inner(place.expand(shape)), mapper)
    }
}
