//! The optimizer's step where each rank updates its share of every parameter.

use std::collections::{HashMap, HashSet, VecDeque};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::optim::adamw::Update;
use kernels::runtime::collective::InFlight;
use kernels::{KernelBackend, TrainBackend};
use model::PhiMamba;

use super::flat::{Entry, filled};
use super::share::{part, share};
use super::{Arriving, Bucket, Reduced, Sharing};
use crate::optimizer::{AdamW, Moments};

/// A parameter that was taken out of the student.
struct Whole<B: Backend> {
    /// Flattened.
    value: Tensor<B, 1>,
    dimensions: usize,
}

impl<B: KernelBackend> Sharing<B> {
    /// [`AdamW::step`] by shares: each rank updates its own share of each parameter, and the ranks exchange them. The
    /// exchange of a bucket may overlap with the update of the next. The resulting student is complete on every rank.
    pub(crate) fn step<A: TrainBackend<InnerBackend = B>>(
        &self,
        optimizer: &mut AdamW<B>,
        student: PhiMamba<A>,
        reduced: Reduced<B>,
        scale: Tensor<B, 1>,
        lr: impl Fn(ParamId) -> Option<f64>,
    ) -> Arriving<A> {
        let place = self.ranks.place();
        let Reduced {
            sums: mut own,
            ids,
            buckets,
        } = reduced;
        let trained = ids.into_iter().filter(|id| lr(*id).is_some());
        let mut all = TakeWhole {
            ids: trained.collect(),
            found: HashMap::new(),
        };
        let student = student.map(&mut all);
        let mut gathers = VecDeque::new();
        for bucket in buckets {
            // In the bucket's order, which is that of every rank.
            let mut wholes: Vec<(Entry, Option<Tensor<B, 1>>)> = vec![];
            let (mut places, mut updates) = (vec![], vec![]);
            for entry in bucket.0 {
                let Some(Whole { value, dimensions }) = all.found.remove(&entry.id) else {
                    // This parameter does not train.
                    continue;
                };
                let whole = filled(value, place.world * part(entry.elements, place.world));
                let range = share(entry.elements, place);
                let (Some(gradient), Some(lr)) = (own.take(entry.id), lr(entry.id)) else {
                    // This rank's share of it is empty.
                    wholes.push((entry, Some(whole)));
                    continue;
                };
                let moments = optimizer.moments.remove(&entry.id);
                let Moments { values, time } = moments.unwrap_or_else(|| {
                    let options = (&whole.device(), whole.dtype());
                    let zeros = || Tensor::zeros([range.len()], options);
                    Moments {
                        values: [zeros(), zeros()],
                        time: 0,
                    }
                });
                places.push((wholes.len(), time + 1));
                wholes.push((entry, None));
                updates.push(Update {
                    parameter: whole,
                    start: range.start,
                    gradient,
                    moments: values,
                    step: optimizer.numbers(lr, dimensions, time + 1),
                });
            }
            let updated = if updates.is_empty() {
                vec![]
            } else {
                kernels::adamw_steps(updates, scale.clone())
            };
            for ((at, time), (value, moments)) in places.into_iter().zip(updated) {
                let (entry, whole) = &mut wholes[at];
                *whole = Some(value);
                let moments = Moments {
                    values: moments,
                    time,
                };
                optimizer.moments.insert(entry.id, moments);
            }
            let (entries, wholes): (Vec<_>, Vec<_>) = wholes.into_iter().unzip();
            let wholes = wholes.into_iter().flatten().collect();
            let gathered = if place.world == 1 {
                InFlight::done(wholes)
            } else {
                self.ranks.collective().gather_parts(wholes)
            };
            gathers.push_back((Bucket(entries), gathered));
        }
        Arriving::new(student, gathers)
    }
}

/// Takes parameters, flattened, out of the student, and leaves a placeholder of one element in each place. Nothing else
/// then holds the parameters.
struct TakeWhole<B: Backend> {
    ids: HashSet<ParamId>,
    found: HashMap<ParamId, Whole<B>>,
}

impl<A: TrainBackend> ModuleMapper<A> for TakeWhole<A::InnerBackend> {
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
