//! Sends gradients to the other ranks while the last pass of a step still goes backward.
//!
//! The order in which a pass gives its gradients, and the number of parts of each, are the same in every step of a
//! stage and on every rank. The first step records them: its gradients are sent when the passes are over, in buckets in
//! the order in which they became complete, and the ranks compare these orders ([`Plan::agree`]). In later steps a
//! bucket is sent as soon as its last gradient is complete, while the device continues the backward pass. Gradients
//! that are not in the plan, or come in another order, are sent at the end of the step, as in the first step.

use std::collections::{HashMap, HashSet, VecDeque};

use burn::module::ParamId;
use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::runtime::collective::InFlight;
use model::widen;

use super::flat::{Entry, buckets, filled};
use super::share::{part, share};
use super::{Bucket, FlatOrder, Sharing};
use crate::error::TrainError;
use crate::gradients::{Gradients, Sink};

/// The most buckets whose sums are under way at the same time: each needs memory for its gradients in f32. The next
/// bucket waits for the oldest.
const IN_FLIGHT: usize = 3;

/// The order in which the gradients of a step come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order in which they become complete.
    buckets: Vec<Bucket>,
    /// The number of parts of each gradient.
    parts: HashMap<ParamId, usize>,
}

impl Plan {
    /// Checks that all ranks have the same plan. The host waits for the others.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if they are not: sums would then be made of gradients of different parameters.
    pub(crate) fn agree<B: KernelBackend>(&self, sharing: &Sharing<B>) -> Result<(), TrainError> {
        let words = self.words(&sharing.order);
        let what = "the order in which gradients come";
        sharing.ranks.agree(&sharing.device, what, &words)
    }

    /// The plan as text, with the numbers that parameters have in `order`, since their ids differ from process to
    /// process.
    fn words(&self, order: &FlatOrder) -> String {
        let entries = order.entries().iter().enumerate();
        let numbers: HashMap<ParamId, usize> = entries.map(|(i, entry)| (entry.id, i)).collect();
        let of_entry = |entry: &Entry| {
            let parts = self.parts.get(&entry.id);
            (numbers.get(&entry.id), entry.elements, parts)
        };
        let of_bucket = |bucket: &Bucket| bucket.0.iter().map(of_entry).collect::<Vec<_>>();
        let buckets: Vec<_> = self.buckets.iter().map(of_bucket).collect();
        format!("{buckets:?}")
    }
}

/// The gradients of a step after they were added up over all ranks.
pub(crate) struct Reduced<B: KernelBackend> {
    /// The sums, or this rank's shares of them.
    pub(crate) sums: Gradients<B>,
    /// All parameters that have a gradient on any rank.
    pub(crate) ids: Vec<ParamId>,
    /// In the order in which they were sent.
    pub(crate) buckets: Vec<Bucket>,
}

/// Receives the gradients of the last pass of a step, and adds them up over all ranks.
pub(crate) struct Outlet<'a, B: KernelBackend> {
    sharing: &'a Sharing<B>,
    plan: &'a Plan,
    /// The sums over the earlier passes of this step.
    before: Gradients<B>,
    of_pass: Gradients<B>,
    sent: Vec<Bucket>,
    in_flight: VecDeque<(Bucket, InFlight<B>)>,
    sums: Vec<(ParamId, Tensor<B, 1>)>,
}

impl<B: KernelBackend> Sink<B> for Outlet<'_, B> {
    fn take_in(&mut self, id: ParamId, gradient: Tensor<B, 1>) {
        self.of_pass.take_in(id, gradient);
    }

    fn pause(&mut self) {
        self.send_planned();
    }
}

impl<'a, B: KernelBackend> Outlet<'a, B> {
    /// An outlet for a step whose gradients come in the order of `plan`; `before` has the sums over all passes but the
    /// last.
    pub(crate) fn new(sharing: &'a Sharing<B>, plan: &'a Plan, before: Gradients<B>) -> Self {
        Self {
            sharing,
            plan,
            before,
            of_pass: Gradients::default(),
            sent: vec![],
            in_flight: VecDeque::new(),
            sums: vec![],
        }
    }

    /// The same after all passes; `all` has their sums.
    pub(crate) fn of_all(sharing: &'a Sharing<B>, plan: &'a Plan, all: Gradients<B>) -> Self {
        Self {
            of_pass: all,
            ..Self::new(sharing, plan, Gradients::default())
        }
    }

    /// Sends the remaining gradients, and returns the sums over all ranks and the plan for the next step.
    ///
    /// If `differ` is true, ranks may have gradients of different parameters. Then they first agree on the parameters,
    /// for which the host waits, and in the next step nothing is sent before its end.
    pub(crate) fn finish(mut self, differ: bool) -> (Reduced<B>, Plan) {
        self.send_planned();
        let mut known = HashSet::new();
        let ids = [&self.before, &self.of_pass].into_iter();
        let ids = ids.flat_map(|gradients| gradients.ids()).copied();
        let mut ids: Vec<ParamId> = ids.filter(|id| known.insert(*id)).collect();
        let parts = ids.iter().map(|id| {
            let parts = self.of_pass.parts(*id);
            (*id, parts)
        });
        let parts = parts.collect();
        let mut rest = std::mem::take(&mut self.before);
        rest.merge(std::mem::take(&mut self.of_pass));
        if differ {
            rest = self.sharing.completed(rest);
            ids = rest.ids().to_vec();
        }
        let entries = rest
            .completed()
            .map(|(id, elements)| Entry { id, elements });
        for bucket in buckets(entries.collect::<Vec<_>>(), self.sharing.most()) {
            let gradients = bucket.0.iter().map(|entry| rest.take(entry.id));
            let gradients = gradients.map(|gradient| gradient.expect("it was not taken out"));
            let gradients = gradients.collect();
            self.send(bucket, gradients);
        }
        while !self.in_flight.is_empty() {
            self.receive();
        }
        let plan = if differ {
            Plan::default()
        } else {
            Plan {
                buckets: each_once(&self.sent),
                parts,
            }
        };
        let reduced = Reduced {
            sums: Gradients::of(&ids, self.sums),
            ids,
            buckets: self.sent,
        };
        (reduced, plan)
    }

    /// Sends the next buckets of the plan, as long as their gradients are complete.
    fn send_planned(&mut self) {
        while let Some(bucket) = self.plan.buckets.get(self.sent.len()) {
            let is_whole = |entry: &Entry| {
                let expected = self.plan.parts.get(&entry.id).copied();
                expected.is_some_and(|parts| parts > 0 && self.of_pass.parts(entry.id) >= parts)
            };
            if !bucket.0.iter().all(is_whole) {
                return;
            }
            let sum = |entry: &Entry| {
                let of_pass = self.of_pass.take(entry.id);
                let of_pass = of_pass.expect("a gradient that has come and not left");
                match self.before.take(entry.id) {
                    Some(before) => widen(before) + widen(of_pass),
                    None => of_pass,
                }
            };
            let gradients = bucket.0.iter().map(sum).collect();
            self.send(bucket.clone(), gradients);
        }
    }

    /// Begins to add up the gradients of `bucket` over the ranks.
    fn send(&mut self, bucket: Bucket, gradients: Vec<Tensor<B, 1>>) {
        let place = self.sharing.ranks.place();
        self.sent.push(bucket.clone());
        if place.world == 1 {
            // The sum is what there is.
            self.in_flight
                .push_back((bucket, InFlight::done(gradients)));
            return self.receive();
        }
        if self.in_flight.len() == IN_FLIGHT {
            self.receive();
        }
        let gradients = kernels::cast_all(gradients, DType::F32);
        let ranks = self.sharing.ranks.collective();
        let sums = if self.sharing.config.shard_moments {
            let entries = gradients.into_iter().zip(&bucket.0);
            let filled = entries
                .map(|(x, entry)| filled(x, place.world * part(entry.elements, place.world)));
            ranks.reduce_scatter(filled.collect())
        } else {
            ranks.all_reduce(gradients)
        };
        self.in_flight.push_back((bucket, sums));
    }

    /// Takes the sums of the oldest bucket that is on its way.
    fn receive(&mut self) {
        let Some((bucket, sums)) = self.in_flight.pop_front() else {
            return;
        };
        let place = self.sharing.ranks.place();
        for (entry, sum) in bucket.0.iter().zip(sums.wait()) {
            let length = if self.sharing.config.shard_moments {
                share(entry.elements, place).len()
            } else {
                entry.elements
            };
            if length == sum.dims()[0] {
                self.sums.push((entry.id, sum));
            } else if length > 0 {
                self.sums.push((entry.id, sum.narrow(0, 0, length)));
            }
        }
    }
}

/// `buckets`, with each parameter only in its first bucket. A parameter whose parts came late was sent in two buckets;
/// in the next step the first of them waits for all parts.
fn each_once(buckets: &[Bucket]) -> Vec<Bucket> {
    let mut known = HashSet::new();
    let mut firsts = vec![];
    for bucket in buckets {
        let new = bucket.0.iter().filter(|entry| known.insert(entry.id));
        let new: Vec<Entry> = new.copied().collect();
        if !new.is_empty() {
            firsts.push(Bucket(new));
        }
    }
    firsts
}

#[cfg(all(test, feature = "flex"))]
mod tests;
