//! How ranks share the steps of a stage, and the quantities of a step that they compute together.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::ParamId;
use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use model::Part;

use super::flat::Entry;
use super::share::part;
use super::{Bucket, FlatOrder, Ranks, download, upload};
use crate::clipping::Place;
use crate::config;
use crate::error::TrainError;
use crate::gradients::Gradients;
use crate::run::StopRequest;

/// How the ranks share the steps of a stage.
#[derive(Clone)]
pub struct Sharing<B: KernelBackend> {
    /// The ranks.
    pub ranks: Ranks<B>,
    /// The order in which parameters are exchanged.
    pub order: FlatOrder,
    /// The section `[parallel]` of the configuration.
    pub config: config::Parallel,
    /// Whether this rank is asked to stop.
    pub stop: StopRequest,
    /// The device of this rank.
    pub device: B::Device,
}

/// The quantities of a step over all ranks, one element each.
pub(crate) struct Global<B: KernelBackend> {
    /// The mean loss over the passes of all ranks.
    pub(crate) loss: Tensor<B, 1>,
    /// How many ranks are asked to stop.
    pub(crate) stops: Tensor<B, 1>,
    /// The norm of the sum of the gradients.
    pub(crate) norm: Tensor<B, 1>,
    /// The same for each part.
    pub(crate) norms: BTreeMap<Part, Tensor<B, 1>>,
    /// The squared norm for each cell.
    pub(crate) squares_of_cells: BTreeMap<Place, Tensor<B, 1>>,
}

/// An error if the passes of `stage` cannot be divided equally among `world` ranks.
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
    /// The largest number of elements of a bucket.
    pub(super) fn most(&self) -> usize {
        self.config.bucket_mib.saturating_mul((1 << 20) / 4)
    }

    /// The parameters with these ids in buckets of the same size as those of a step.
    fn buckets(&self, ids: &[ParamId]) -> Vec<Bucket> {
        self.order.buckets(|id| ids.contains(&id), self.most())
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

    /// `gradients`, with zeros added for parameters of which only other ranks have a gradient: all ranks must exchange
    /// the same parameters. The host waits for the others.
    pub(super) fn completed(&self, mut gradients: Gradients<B>) -> Gradients<B> {
        if self.ranks.place().world == 1 {
            return gradients;
        }
        let entries = self.of_any_rank(gradients.ids(), &self.device);
        let ids: Vec<ParamId> = entries.iter().map(|entry| entry.id).collect();
        let sums: Vec<_> = (entries.iter())
            .map(|entry| {
                let sum = gradients.take(entry.id);
                let sum = sum.unwrap_or_else(|| Tensor::zeros([entry.elements], &self.device));
                (entry.id, sum)
            })
            .collect();
        Gradients::of(&ids, sums)
    }

    /// Does the exchange of a step for the parameters with these ids, with zeros instead of their values, to time it.
    pub(crate) fn exchange(&self, ids: &[ParamId], device: &B::Device) {
        let (ranks, world) = (self.ranks.collective(), self.ranks.place().world);
        for bucket in self.buckets(ids) {
            let elements = bucket.0.iter().map(|entry| {
                if self.config.shard_moments {
                    world * part(entry.elements, world)
                } else {
                    entry.elements
                }
            });
            let zeros = elements.map(|elements| Tensor::<B, 1>::zeros([elements], device));
            let zeros: Vec<_> = zeros.collect();
            if self.config.shard_moments {
                let _ = ranks.reduce_scatter(zeros.clone()).wait();
                let _ = ranks.gather_parts(zeros).wait();
            } else {
                let _ = ranks.all_reduce(zeros).wait();
            }
        }
    }

    /// The bytes that each rank sends in a step for the parameters with these ids, if the ranks send in a ring: to
    /// scatter the sums, all parts but its own, and as many bytes to gather the updated parameters.
    pub(crate) fn exchanged_bytes(&self, ids: &[ParamId]) -> u64 {
        let world = self.ranks.place().world;
        let parts = self.buckets(ids).into_iter();
        let part: usize = parts.map(|bucket| bucket.part(world)).sum();
        (2 * (world - 1) * part * size_of::<f32>()) as u64
    }

    /// The sum of `x [n]` over all ranks, in the order of the ranks, so that all ranks get the same bits.
    pub(crate) fn sum(&self, x: Tensor<B, 1>) -> Tensor<B, 1> {
        let ([n], world) = (x.dims(), self.ranks.place().world);
        let all = self.ranks.collective().all_gather(vec![x]).wait_for_one();
        all.reshape([world, n]).sum_dim(0).reshape([n])
    }

    /// The quantities of a step over all ranks. `loss` is the mean loss on this rank; `gradients` are the sums over all
    /// ranks, or this rank's shares of them; `ids` are the parameters that have a gradient on any rank, in the same
    /// order on all.
    ///
    /// Every rank computes the sums itself, in the order of the ranks, so that all get the same bits.
    pub(crate) fn global(
        &self,
        loss: Tensor<B, 1>,
        gradients: &Gradients<B>,
        ids: &[ParamId],
        part: impl Fn(ParamId) -> Option<Part>,
        cell: impl Fn(ParamId) -> Option<Place>,
    ) -> Global<B> {
        let device = loss.device();
        let world = self.ranks.place().world;
        let stop = upload(vec![f32::from(self.stop.is_asked())], &device);
        let mut own = vec![in_f32(loss), stop];
        let (parts, cells) = (groups(ids, &part), groups(ids, &cell));
        if self.config.shard_moments {
            let nothing = || upload(vec![0.0], &device);
            let squares = gradients.squares().unwrap_or_else(nothing);
            own.push(in_f32(squares));
            own.extend(in_order(&parts, gradients.squares_of(&part), nothing));
            own.extend(in_order(&cells, gradients.squares_of(&cell), nothing));
        }
        let sums = self.sum(Tensor::cat(own, 0));
        let sum = |i: usize| sums.clone().narrow(0, i, 1);
        let (norm, norms, squares_of_cells) = if self.config.shard_moments {
            let norms = parts.iter().enumerate();
            let norms = norms.map(|(i, part)| (*part, sum(3 + i).sqrt()));
            let of_cells = cells.iter().enumerate();
            let of_cells = of_cells.map(|(i, cell)| (*cell, sum(3 + parts.len() + i)));
            (sum(2).sqrt(), norms.collect(), of_cells.collect())
        } else {
            let norm = gradients.norm();
            (
                norm.unwrap_or_else(|| sum(0).zeros_like()),
                gradients.norms(part),
                gradients.squares_of(cell),
            )
        };
        Global {
            loss: sum(0).div_scalar(world as f32),
            stops: sum(1),
            norm,
            norms,
            squares_of_cells,
        }
    }
}

/// The groups of the parameters with these ids, each once.
fn groups<G: Ord>(ids: &[ParamId], group: impl Fn(ParamId) -> Option<G>) -> Vec<G> {
    let groups: BTreeSet<G> = ids.iter().filter_map(|id| group(*id)).collect();
    groups.into_iter().collect()
}

/// The value of each of `groups`, in f32, or `nothing` where it has none.
fn in_order<B: KernelBackend, G: Ord>(
    groups: &[G],
    mut values: BTreeMap<G, Tensor<B, 1>>,
    nothing: impl Fn() -> Tensor<B, 1>,
) -> Vec<Tensor<B, 1>> {
    let value = |group| values.remove(group).map_or_else(&nothing, in_f32);
    groups.iter().map(value).collect()
}

fn in_f32<B: KernelBackend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    if x.dtype() == DType::F32 {
        x
    } else {
        x.cast(DType::F32)
    }
}
