//! When the gradients of a step leave, and what their sums are.

use burn::tensor::TensorData;
use kernels::runtime::Flex;

use super::super::Ranks;
use super::super::tests::on_each;
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

/// A rank's share of the sum of two gradients: `gradient(elements, value)` of the first rank, and ten times as much of
/// the second.
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
        // The gradient of the first parameter comes in two parts, as that of tied embeddings does.
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

/// Gradients are sent in the order of the plan when a bucket is complete, together with the sums of the earlier passes.
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

/// A parameter that does not come delays its bucket to the end, where also a parameter is sent that the plan does not
/// have, or a part that comes after its bucket. A further step in the same order is then as planned.
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
                    let expected: Vec<f32> = expected.iter().map(|value| times * value).collect();
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

/// If ranks have gradients of different parameters, a rank without a gradient sends zeros.
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

/// Ranks give their parameters different ids, and the same numbers.
#[test]
fn plans_are_compared() {
    let agreed = |differs: &(dyn Fn(usize, Plan) -> Plan + Sync)| {
        on_each(2, |ranks| {
            let rank = ranks.place().rank;
            let ids = SIZES.map(|_| ParamId::new());
            let sharing = sharing(ranks, &ids, true);
            let plan = plan(&ids, &[&[1, 2], &[0], &[3]], &[2, 1, 1, 1]);
            let agreed = differs(rank, plan).agree(&sharing);
            agreed.map_err(|error| error.to_string())
        })
    };
    assert_eq!(agreed(&|_, plan| plan), [Ok(()), Ok(())]);
    let other_order = |rank: usize, mut plan: Plan| {
        plan.buckets.rotate_left(rank);
        plan
    };
    let other_parts = |rank: usize, mut plan: Plan| {
        let counts = plan.parts.values_mut();
        counts.for_each(|parts| *parts += rank);
        plan
    };
    let others: [&(dyn Fn(usize, Plan) -> Plan + Sync); 2] = [&other_order, &other_parts];
    for differs in others {
        for refused in agreed(differs) {
            let words = refused.unwrap_err();
            assert!(
                words.contains("order in which gradients come") && words.contains("rank 1"),
                "{words}"
            );
        }
    }
}
