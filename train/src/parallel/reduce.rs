//! The sum of the gradients over the ranks, and what is measured of it.

use std::collections::{BTreeMap, VecDeque};

use burn::module::ParamId;
use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::runtime::collective::InFlight;
use model::Part;

use super::flat::Entry;
use super::{Bucket, FlatOrder, Ranks, download, upload};
use crate::config;
use crate::error::TrainError;
use crate::gradients::Gradients;
use crate::run::StopRequest;

/// Buckets that are on their way at once, at most: each takes memory for what it holds and what comes of it.
pub(super) const IN_FLIGHT: usize = 2;

/// How the ranks share the steps of a stage.
#[derive(Clone)]
pub struct Sharing<B: KernelBackend> {
    /// Who they are.
    pub ranks: Ranks<B>,
    /// In which order parameters are exchanged.
    pub order: FlatOrder,
    /// What the configuration says of it.
    pub config: config::Parallel,
    /// Whether this rank is asked to stop.
    pub stop: StopRequest,
}

/// What all ranks have found out together about a step.
pub(crate) struct Global<B: KernelBackend> {
    /// The mean loss over the passes of all ranks.
    pub(crate) loss: Tensor<B, 1>,
    /// How many ranks are asked to stop.
    pub(crate) stops: Tensor<B, 1>,
    /// The norm of the sum of the gradients.
    pub(crate) norm: Tensor<B, 1>,
    /// The same of each part.
    pub(crate) norms: BTreeMap<Part, Tensor<B, 1>>,
}

/// Passes that cannot be shared out.
pub(crate) fn indivisible(stage: &config::StageConfig, world: usize) -> Result<(), TrainError> {
    let passes = stage.accumulation();
    if passes.is_multiple_of(world) {
        return Ok(());
    }
    let (name, batch, micro_batch) = (&stage.name, stage.batch, stage.micro_batch);
    Err(TrainError::Ranks(format!(
        "{world} ranks cannot share the {passes} passes of a step of stage {name} (batch {batch} / micro_batch \
         {micro_batch}): the number of ranks must divide them; choose another number of ranks, or another micro_batch"
    )))
}

impl<B: KernelBackend> Sharing<B> {
    /// The buckets of the parameters with these ids.
    pub(crate) fn buckets(&self, ids: &[ParamId]) -> Vec<Bucket> {
        let most = self.config.bucket_mib.saturating_mul((1 << 20) / 4);
        self.order.buckets(|id| ids.contains(&id), most)
    }

    /// The parameters that any rank has among its `ids`, in the order of exchange: the same on all ranks.
    pub(crate) fn of_any_rank(&self, ids: &[ParamId], device: &B::Device) -> Vec<Entry> {
        let entries = self.order.entries();
        let own = entries
            .iter()
            .map(|entry| f32::from(ids.contains(&entry.id)));
        let ranks = download(self.sum(upload(own.collect(), device)));
        let found = entries.iter().zip(ranks);
        let found = found.filter(|(_, ranks)| *ranks > 0.0);
        found.map(|(entry, _)| *entry).collect()
    }

    /// `gradients`, and zeros for the parameters of which other ranks alone have one: what is exchanged must be the same
    /// on all ranks. The host waits for the others.
    pub(crate) fn completed(
        &self,
        mut gradients: Gradients<B>,
        device: &B::Device,
    ) -> Gradients<B> {
        if self.ranks.place().world == 1 {
            return gradients;
        }
        let entries = self.of_any_rank(gradients.ids(), device);
        let ids: Vec<ParamId> = entries.iter().map(|entry| entry.id).collect();
        let sums: Vec<_> = (entries.iter())
            .map(|entry| {
                let sum = gradients.take(entry.id);
                let sum = sum.unwrap_or_else(|| Tensor::zeros([entry.elements], device));
                (entry.id, sum)
            })
            .collect();
        Gradients::of(&ids, sums)
    }

    /// Exchanges what a step exchanges of the parameters with these ids, with zeros in their place.
    pub(crate) fn exchange(&self, ids: &[ParamId], device: &B::Device) {
        let (ranks, world) = (self.ranks.collective(), self.ranks.place().world);
        for bucket in self.buckets(ids) {
            let zeros = |elements: usize| Tensor::<B, 1>::zeros([elements], device);
            if self.config.shard_moments {
                let own = ranks.reduce_scatter(zeros(world * bucket.part(world)));
                let _ = ranks.all_gather(own.wait()).wait();
            } else {
                let _ = ranks.all_reduce(zeros(bucket.elements())).wait();
            }
        }
    }

    /// The bytes that each rank sends in a step for the parameters with these ids, where the ranks send in a ring: to
    /// scatter the sums, all but its own part, and as many to gather what comes of them.
    pub(crate) fn exchanged_bytes(&self, ids: &[ParamId]) -> u64 {
        let world = self.ranks.place().world;
        let parts = self.buckets(ids).into_iter();
        let part: usize = parts.map(|bucket| bucket.part(world)).sum();
        (2 * (world - 1) * part * size_of::<f32>()) as u64
    }

    /// The sum over all ranks of `gradients`, whole.
    pub(crate) fn reduce(&self, mut gradients: Gradients<B>) -> Gradients<B> {
        let ids = gradients.ids().to_vec();
        let mut sums = vec![];
        let mut arrived = |(bucket, sum): (Bucket, InFlight<B>)| {
            let values = bucket.split(sum.wait());
            sums.extend(bucket.0.iter().map(|entry| entry.id).zip(values));
        };
        let mut in_flight = VecDeque::new();
        for bucket in self.buckets(&ids) {
            let packed = Bucket::join(taken(&bucket, &mut gradients));
            let sum = self.ranks.collective().all_reduce(packed);
            in_flight.push_back((bucket, sum));
            if in_flight.len() == IN_FLIGHT
                && let Some(oldest) = in_flight.pop_front()
            {
                arrived(oldest);
            }
        }
        in_flight.into_iter().for_each(arrived);
        Gradients::of(&ids, sums)
    }

    /// This rank's share of the sum over all ranks of `gradients`.
    pub(crate) fn reduce_to_shares(&self, mut gradients: Gradients<B>) -> Gradients<B> {
        let ids = gradients.ids().to_vec();
        let place = self.ranks.place();
        let mut shares = vec![];
        let mut arrived = |(bucket, own): (Bucket, InFlight<B>)| {
            let own = bucket.cut(own.wait(), place).into_iter();
            let ids = bucket.0.iter().map(|entry| entry.id);
            shares.extend(ids.zip(own).filter_map(|(id, share)| Some((id, share?))));
        };
        let mut in_flight = VecDeque::new();
        for bucket in self.buckets(&ids) {
            let packed = bucket.pack(taken(&bucket, &mut gradients), place.world);
            let own = self.ranks.collective().reduce_scatter(packed);
            in_flight.push_back((bucket, own));
            if in_flight.len() == IN_FLIGHT
                && let Some(oldest) = in_flight.pop_front()
            {
                arrived(oldest);
            }
        }
        in_flight.into_iter().for_each(arrived);
        Gradients::of(&ids, shares)
    }

    /// The sum over all ranks of a few numbers, `x`, in the order of the ranks: the same bits on each.
    pub(crate) fn sum(&self, x: Tensor<B, 1>) -> Tensor<B, 1> {
        let ([n], world) = (x.dims(), self.ranks.place().world);
        let all = self.ranks.collective().all_gather(x).wait();
        all.reshape([world, n]).sum_dim(0).reshape([n])
    }

    /// What all ranks find of a step whose mean loss on this rank is `loss`, and whose gradients, of which `ids` are all on
    /// every rank, are `gradients` here: this rank's shares, or all of them.
    ///
    /// Sums go by the order of the ranks, and every rank makes them itself: they are the same bits on each.
    pub(crate) fn global(
        &self,
        loss: Tensor<B, 1>,
        gradients: &Gradients<B>,
        ids: &[ParamId],
        part: impl Fn(ParamId) -> Option<Part>,
    ) -> Global<B> {
        let device = loss.device();
        let world = self.ranks.place().world;
        let stop = upload(vec![f32::from(self.stop.is_asked())], &device);
        let mut own = vec![in_f32(loss), stop];
        let mut parts: Vec<Part> = ids.iter().filter_map(|id| part(*id)).collect();
        parts.sort_unstable();
        parts.dedup();
        if self.config.shard_moments {
            let nothing = || upload(vec![0.0], &device);
            let squares = gradients.squares().unwrap_or_else(nothing);
            let mut of_parts = gradients.squares_of(&part);
            own.push(in_f32(squares));
            own.extend(parts.iter().map(|part| {
                let squares = of_parts.remove(part);
                squares.map_or_else(nothing, in_f32)
            }));
        }
        let sums = self.sum(Tensor::cat(own, 0));
        let sum = |i: usize| sums.clone().narrow(0, i, 1);
        let (norm, norms) = if self.config.shard_moments {
            let norms = parts.iter().enumerate();
            let norms = norms.map(|(i, part)| (*part, sum(3 + i).sqrt()));
            (sum(2).sqrt(), norms.collect())
        } else {
            let norm = gradients.norm();
            (
                norm.unwrap_or_else(|| sum(0).zeros_like()),
                gradients.norms(part),
            )
        };
        Global {
            loss: sum(0).div_scalar(world as f32),
            stops: sum(1),
            norm,
            norms,
        }
    }
}

/// The gradients of the parameters of `bucket`, in f32.
fn taken<B: KernelBackend>(bucket: &Bucket, gradients: &mut Gradients<B>) -> Vec<Tensor<B, 1>> {
    let take = |entry: &Entry| {
        let gradient = gradients.take(entry.id);
        in_f32(gradient.expect("a gradient of each parameter of a bucket"))
    };
    bucket.0.iter().map(take).collect()
}

fn in_f32<B: KernelBackend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    if x.dtype() == DType::F32 {
        x
    } else {
        x.cast(DType::F32)
    }
}
