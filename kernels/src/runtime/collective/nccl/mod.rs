//! NCCL: ranks on NVIDIA GPUs, each with the memory of one.
//!
//! A build does not need NCCL: [`library`] opens `libnccl` at run time, when ranks join. [`queue`] orders NCCL's
//! operations with the work that CubeCL has queued.
//!
//! # Determinism
//!
//! The order of NCCL's additions depends on its algorithm and topology. Both are chosen when the ranks join, from the
//! machine, the library's version, the sizes and the environment variables `NCCL_*`. If these are the same, sums are
//! the same to the last bit. Another number of ranks means another order.
//!
//! # NVLink multicast
//!
//! NCCL can use the switch between the GPUs for the additions (NVLS). On machines whose driver is not set up for this,
//! NCCL fails or hangs. So NVLS is off here unless the variable `NCCL_NVLS_ENABLE` is set.

mod library;
mod queue;

use std::sync::Arc;

use burn::tensor::backend::{Backend, DeviceId};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use self::library::Nccl;
use self::queue::{Communicator, Kind, Operation};
use super::{Collective, CollectiveError, InFlight, JobId, Place};
use crate::cube::{empty, inner, own, tensor};

/// See [`JobId::new`].
pub(super) fn new_id() -> Result<JobId, CollectiveError> {
    library::open()?.new_id()
}

/// Joins the other ranks of the job `id`, on `device`. Waits for all of them.
///
/// # Errors
/// If the library is not found, or the error that it reports.
pub(crate) fn join(device: DeviceId, place: Place, id: JobId) -> Result<Ranks, CollectiveError> {
    let library = library::open()?;
    let communicator = queue::join(library, device, place, id)?;
    Ok(Ranks {
        library,
        device,
        place,
        communicator: Arc::new(communicator),
    })
}

/// The ranks, seen from one of them.
pub(crate) struct Ranks {
    library: &'static Nccl,
    device: DeviceId,
    place: Place,
    communicator: Arc<Communicator>,
}

impl Ranks {
    /// Queues operations of one kind, which go together: one on each of `xs`. Where it writes what it reads, that is its
    /// output; else the output has `length` elements for an input of so many.
    fn queue<R, B>(
        &self,
        kind: Kind,
        xs: Vec<Tensor<B, 1>>,
        length: impl Fn(usize) -> usize,
    ) -> InFlight<B>
    where
        R: CubeRuntime,
        B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    {
        let (mut outputs, mut operations) = (vec![], vec![]);
        for x in xs {
            let x = inner::<R, B, 1>(x);
            assert_eq!(x.dtype, DType::F32, "a collective's tensors are f32");
            let (x, output) = if kind.is_in_place() {
                (None, own(x))
            } else {
                let x = into_contiguous(x);
                let length = length(x.meta.num_elements());
                let output = empty(&x, [length], DType::F32);
                (Some(x), output)
            };
            let from = x.as_ref().unwrap_or(&output);
            let elements = from.meta.num_elements();
            if elements > 0 {
                operations.push(Operation {
                    count: kind.count(elements, self.place.world),
                    buffers: [from.handle.clone(), output.handle.clone()],
                });
            }
            outputs.push(tensor(output));
        }
        if operations.is_empty() {
            return InFlight::done(outputs);
        }
        let kind = (kind, self.place.rank);
        let begun = queue::begin(self.device, &self.communicator, kind, operations);
        InFlight::begun(outputs, || begun.finish())
    }
}

impl<R, B> Collective<B> for RanksOf<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    fn place(&self) -> Place {
        self.ranks.place
    }

    fn name(&self) -> String {
        format!("NCCL {}", self.ranks.library.version())
    }

    fn all_reduce(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        self.ranks.queue(Kind::AllReduce, xs, |n| n)
    }

    fn reduce_scatter(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let world = self.ranks.place.world;
        self.ranks.queue(Kind::ReduceScatter, xs, |n| n / world)
    }

    fn all_gather(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let world = self.ranks.place.world;
        self.ranks.queue(Kind::AllGather, xs, |n| n * world)
    }

    fn gather_parts(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        self.ranks.queue(Kind::GatherParts, xs, |n| n)
    }

    fn broadcast(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        self.ranks.queue(Kind::Broadcast, xs, |n| n)
    }

    fn failure(&self) -> Option<String> {
        self.ranks.communicator.failure()
    }

    fn abort(&self) {
        self.ranks.communicator.abort();
    }
}

/// [`Ranks`] whose tensors are of the runtime `R`, which is CUDA's.
pub(crate) struct RanksOf<R> {
    ranks: Ranks,
    _runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R> RanksOf<R> {
    pub(crate) fn new(ranks: Ranks) -> Self {
        Self {
            ranks,
            _runtime: std::marker::PhantomData,
        }
    }
}
