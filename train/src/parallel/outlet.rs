//! Gradients on their way to the other ranks while the last pass of a step still goes backward.
//!
//! In which order a pass gives its gradients, and in how many parts each, is the same in every step of a stage and on every
//! rank. So the first step shows it: its gradients leave when the passes are over, in buckets in the order in which they
//! were whole. In later steps a bucket leaves as soon as the last of its gradients is whole, while the device continues the
//! backward pass. What a step has beyond that, or in another order, leaves at its end, as in the first step.

use std::collections::{HashMap, HashSet, VecDeque};

use burn::module::ParamId;
use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::runtime::collective::InFlight;
use model::widen;

use super::flat::{Entry, buckets, filled};
use super::share::{part, share};
use super::{Bucket, Sharing};
use crate::gradients::{Gradients, Sink};

/// Buckets whose sums are on their way at once, at most: each takes memory for its gradients in f32. What comes next waits
/// for the oldest.
const IN_FLIGHT: usize = 3;

/// How the gradients of a step come.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// In the order in which they are whole.
    buckets: Vec<Bucket>,
    /// In how many parts each comes.
    parts: HashMap<ParamId, usize>,
}

/// What a step has of its gradients when those of all ranks are added up.
pub(crate) struct Reduced<B: KernelBackend> {
    /// The sums, or this rank's shares of them.
    pub(crate) sums: Gradients<B>,
    /// All parameters that have one on any rank.
    pub(crate) ids: Vec<ParamId>,
    /// In the order in which they left.
    pub(crate) buckets: Vec<Bucket>,
}

/// Takes the gradients of the last pass of a step, and adds up those of all ranks.
pub(crate) struct Outlet<'a, B: KernelBackend> {
    sharing: &'a Sharing<B>,
    plan: &'a Plan,
    /// The sums over the passes before.
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
    /// That of a step whose gradients come as those of `plan`; `before` are the sums over its passes but for the last.
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

    /// The same where `all` passes are over.
    pub(crate) fn of_all(sharing: &'a Sharing<B>, plan: &'a Plan, all: Gradients<B>) -> Self {
        Self {
            of_pass: all,
            ..Self::new(sharing, plan, Gradients::default())
        }
    }

    /// Sends what has not left; the sums over all ranks, and how the gradients of the next step will come.
    ///
    /// `differ` is whether ranks may have gradients of other parameters than others: then they agree first, for which the
    /// host waits, and the next step sends nothing before its end.
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

    /// Sends the buckets that are next in the plan, as far as their gradients are whole.
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

/// `buckets`, with each parameter where it is first: one of which parts were late has left in two of them, and in the next
/// step the first waits for all parts.
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
mod tests {
    use burn::tensor::TensorData;
    use kernels::runtime::Flex;

    use super::super::tests::on_each;
    use super::super::{FlatOrder, Ranks};
    use super::*;
    use crate::config::{Config, Source};
    use crate::run::StopRequest;

    /// Elements of the parameters.
    const SIZES: [usize; 4] = [3, 4, 2, 5];

    fn sharing(ranks: Ranks<Flex>, ids: &[ParamId], shard_moments: bool) -> Sharing<Flex> {
        let config = Config::load(Source::Preset("tiny"), &[]).expect("tiny");
        let entries = ids.iter().zip(SIZES);
        let entries = entries.map(|(id, elements)| Entry { id: *id, elements });
        let mut config = config.parallel;
        config.shard_moments = shard_moments;
        Sharing {
            ranks,
            order: FlatOrder(entries.collect()),
            config,
            stop: StopRequest::default(),
            device: Default::default(),
        }
    }

    fn gradient(elements: usize, value: f32) -> Tensor<Flex, 1> {
        let values: Vec<f32> = (0..elements).map(|i| value + i as f32).collect();
        Tensor::from_data(TensorData::new(values, [elements]), &Default::default())
    }

    fn values(gradients: &mut Gradients<Flex>, id: ParamId) -> Option<Vec<f32>> {
        let sum = gradients.take(id)?;
        Some(sum.into_data().iter::<f32>().collect())
    }

    /// A plan whose buckets have these parameters, of which each comes in so many parts.
    fn plan(ids: &[ParamId], of_buckets: &[&[usize]], parts: &[usize]) -> Plan {
        let entry = |i: &usize| Entry {
            id: ids[*i],
            elements: SIZES[*i],
        };
        let bucket = |of: &&[usize]| Bucket(of.iter().map(entry).collect());
        Plan {
            buckets: of_buckets.iter().map(bucket).collect(),
            parts: ids.iter().copied().zip(parts.iter().copied()).collect(),
        }
    }

    /// A rank's `own` share of a parameter of so many elements, of the sum over two ranks of `gradient(elements, value)` of
    /// the first and ten times as much of the second.
    fn share_of_sum(elements: usize, value: f32, rank: usize) -> Vec<f32> {
        let whole: Vec<f32> = (0..elements).map(|i| 11.0 * (value + i as f32)).collect();
        whole[share(
            elements,
            kernels::runtime::collective::Place { rank, world: 2 },
        )]
        .to_vec()
    }

    #[test]
    fn the_first_step_shows_how_gradients_come() {
        let ids = SIZES.map(|_| ParamId::new());
        let found = on_each(2, |ranks| {
            let rank = ranks.place().rank;
            let factor = [1.0, 10.0][rank];
            let sharing = sharing(ranks, &ids, true);
            let plan = Plan::default();
            let mut outlet = Outlet::new(&sharing, &plan, Gradients::default());
            // As tied embeddings do, the first comes in two parts.
            let sink: &mut dyn Sink<Flex> = &mut outlet;
            for i in [0, 2, 0, 1] {
                sink.add_parameter(ids[i], gradient(SIZES[i], i as f32) * factor);
            }
            assert!(outlet.sent.is_empty());
            let (mut reduced, plan) = outlet.finish(false);
            assert_eq!(reduced.ids, [ids[0], ids[2], ids[1]]);
            let order: Vec<_> = reduced
                .buckets
                .iter()
                .flat_map(|bucket| &bucket.0)
                .collect();
            let order: Vec<_> = order.into_iter().map(|entry| entry.id).collect();
            assert_eq!(order, [ids[2], ids[0], ids[1]]);
            assert_eq!(plan.buckets, reduced.buckets);
            assert_eq!(plan.parts[&ids[0]], 2);
            assert_eq!(plan.parts[&ids[1]], 1);
            for (i, times) in [(0, 2.0), (1, 1.0), (2, 1.0)] {
                let expected = share_of_sum(SIZES[i], i as f32, rank);
                let expected: Vec<f32> = expected.iter().map(|value| times * value).collect();
                assert_eq!(values(&mut reduced.sums, ids[i]), Some(expected));
            }
            reduced.sums.ids().to_vec()
        });
        assert_eq!(found[0], [ids[0], ids[2], ids[1]]);
    }

    /// In the order of the plan, when all of a bucket is there, with what the passes before have left.
    #[test]
    fn buckets_leave_as_soon_as_they_are_whole() {
        let ids = SIZES.map(|_| ParamId::new());
        on_each(2, |ranks| {
            let rank = ranks.place().rank;
            let factor = [1.0, 10.0][rank];
            let sharing = sharing(ranks, &ids, true);
            let plan = plan(&ids, &[&[1, 2], &[0], &[3]], &[2, 1, 1, 1]);
            let of_pass = |i: usize| gradient(SIZES[i], i as f32) * factor;
            let mut before = Gradients::default();
            for (i, id) in ids.iter().enumerate() {
                before.add_parameter(*id, of_pass(i));
            }
            let mut outlet = Outlet::new(&sharing, &plan, before);
            for (i, left) in [(0, 0), (2, 0), (1, 1), (3, 1), (0, 3)] {
                let sink: &mut dyn Sink<Flex> = &mut outlet;
                sink.add_parameter(ids[i], of_pass(i));
                assert_eq!(outlet.sent.len(), left, "after parameter {i}");
            }
            let (mut reduced, next) = outlet.finish(false);
            assert_eq!(next.buckets, plan.buckets);
            for (i, times) in [(0, 3.0), (1, 2.0), (2, 2.0), (3, 2.0)] {
                let expected = share_of_sum(SIZES[i], i as f32, rank);
                let expected: Vec<f32> = expected.iter().map(|value| times * value).collect();
                assert_eq!(values(&mut reduced.sums, ids[i]), Some(expected));
            }
        });
    }

    /// A parameter that does not come keeps its bucket back, and one that the plan does not have leaves at the end; so does
    /// a part that comes when the others have left. A step that comes as that one did is then as planned.
    #[test]
    fn what_is_not_as_planned_is_added_up_too() {
        let ids = SIZES.map(|_| ParamId::new());
        for shard_moments in [true, false] {
            on_each(2, |ranks| {
                let rank = ranks.place().rank;
                let factor = [1.0, 10.0][rank];
                let sharing = sharing(ranks, &ids, shard_moments);
                let plan = plan(&ids[..3], &[&[0], &[1, 2]], &[1, 1, 1]);
                let step = |plan: &Plan, left: [usize; 4]| -> Plan {
                    let mut outlet = Outlet::new(&sharing, plan, Gradients::default());
                    for (i, left) in [0, 1, 3, 0].into_iter().zip(left) {
                        let sink: &mut dyn Sink<Flex> = &mut outlet;
                        sink.add_parameter(ids[i], gradient(SIZES[i], i as f32) * factor);
                        assert_eq!(outlet.sent.len(), left, "after parameter {i}");
                    }
                    let (mut reduced, next) = outlet.finish(false);
                    assert_eq!(reduced.ids, [ids[0], ids[1], ids[3]]);
                    for (i, times) in [(0, 2.0), (1, 1.0), (3, 1.0)] {
                        let whole = || (0..SIZES[i]).map(|j| 11.0 * (i + j) as f32).collect();
                        let expected: Vec<f32> = if shard_moments {
                            share_of_sum(SIZES[i], i as f32, rank)
                        } else {
                            whole()
                        };
                        let expected: Vec<f32> =
                            expected.iter().map(|value| times * value).collect();
                        assert_eq!(values(&mut reduced.sums, ids[i]), Some(expected));
                    }
                    assert_eq!(values(&mut reduced.sums, ids[2]), None);
                    next
                };
                let next = step(&plan, [1; 4]);
                assert_eq!(next.buckets[0], plan.buckets[0]);
                let known: Vec<_> = next.buckets.iter().flat_map(|bucket| &bucket.0).collect();
                assert_eq!(known.len(), 3);
                assert_eq!(step(&next, [0, 0, 0, 2]).buckets, next.buckets);
            });
        }
    }

    /// Where ranks have gradients of different parameters, those that lack one have zeros.
    #[test]
    fn ranks_may_differ() {
        let ids = SIZES.map(|_| ParamId::new());
        on_each(2, |ranks| {
            let rank = ranks.place().rank;
            let sharing = sharing(ranks, &ids, false);
            let plan = Plan::default();
            let mut outlet = Outlet::new(&sharing, &plan, Gradients::default());
            for i in [[3, 0], [1, 3]][rank] {
                let sink: &mut dyn Sink<Flex> = &mut outlet;
                sink.add_parameter(ids[i], gradient(SIZES[i], 1.0));
            }
            let (mut reduced, next) = outlet.finish(true);
            assert_eq!(reduced.ids, [ids[0], ids[1], ids[3]]);
            assert!(next.buckets.is_empty());
            let sums = [0, 1, 3].map(|i| values(&mut reduced.sums, ids[i]).expect("a sum"));
            assert_eq!(sums[0], [1.0, 2.0, 3.0]);
            assert_eq!(sums[1], [1.0, 2.0, 3.0, 4.0]);
            assert_eq!(sums[2], [2.0, 4.0, 6.0, 8.0, 10.0]);
        });
    }

    #[test]
    fn one_rank_adds_nothing_up() {
        let ids = SIZES.map(|_| ParamId::new());
        on_each(1, |ranks| {
            let sharing = sharing(ranks, &ids, true);
            let plan = plan(&ids, &[&[0]], &[1; 4]);
            let mut outlet = Outlet::new(&sharing, &plan, Gradients::default());
            let sink: &mut dyn Sink<Flex> = &mut outlet;
            sink.add_parameter(ids[0], gradient(3, 7.0));
            let (mut reduced, _) = outlet.finish(false);
            assert_eq!(values(&mut reduced.sums, ids[0]), Some(vec![7.0, 8.0, 9.0]));
        });
    }
}
