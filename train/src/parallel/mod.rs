//! Data parallel: several processes, each with one device, that train one student.
//!
//! # What is split
//!
//! The passes of an optimizer step (`batch / micro_batch` of them) are divided into blocks: rank `r` of `n` computes a
//! block of `passes / n` passes, which begins at pass `r * passes / n`. All ranks draw the whole batch, which is a
//! function of seed and step, so the text of a step does not depend on the number of ranks. Each rank gets the sum of
//! its share of every parameter's gradient (reduce-scatter) and updates that share; only this rank has the moments for
//! it (ZeRO-1). Then the ranks exchange the updated parameters (all-gather). Without `parallel.shard_moments` every
//! rank gets all sums (all-reduce) and does the whole update.
//!
//! Losses and the squares of the shares' gradients are added up in the order of the ranks, by every rank for itself. So
//! all ranks have the same bits, and make the same decisions that depend on them (clipping, the guard, a step that is
//! skipped) without communication. The same holds for a request to stop, which is sent together with the loss.
//!
//! # What may overlap
//!
//! Sums are requested while the last pass of a step still goes backward: a stage passes on the gradients of a block
//! before it computes those of the next block, and parameters whose gradients come one after the other are sent
//! together (`Outlet`). The norm of all gradients, which clipping needs, needs all sums. Then the shares are updated,
//! and the update of a bucket may overlap with the exchange of the bucket before. The next step begins with the
//! teacher, and requests the parameters of a layer, or all of them, when it first reads the student ([`Arriving`]). An
//! exchange engine may use all of these overlaps, and NCCL's does (`kernels/src/runtime/collective/nccl/queue.rs`).
//!
//! A parameter is updated and gathered in its own memory. Only gradients, which are exchanged in f32, are packed into
//! buffers and unpacked. An engine holds the tensors that it reads until it has read them.
//!
//! # Who does what
//!
//! Rank 0 decides on the configuration and on the checkpoint to resume from, measures perplexities, and writes all
//! files except the other ranks' shares of the moments. It sends its results to the others ([`Ranks::from_first`]), and
//! its errors too.

mod arriving;
mod flat;
pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod outlet;
mod parameters;
mod reduce;
pub mod rendezvous;
mod share;
mod update;
mod world;

pub use arriving::Arriving;
pub use flat::{Bucket, FlatOrder};
pub(crate) use outlet::{Outlet, Plan, Reduced};
pub use reduce::Sharing;
pub(crate) use reduce::indivisible;
pub use share::share;
pub use world::World;

use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::runtime::collective::{Collective, Place};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// The ranks of a run, as seen by one of them; `B` is the inner backend.
#[derive(Clone)]
pub struct Ranks<B: KernelBackend> {
    /// `None` in a run of one process.
    collective: Option<Arc<dyn Collective<B>>>,
}

impl<B: KernelBackend> Ranks<B> {
    /// A run of one process.
    pub fn alone() -> Self {
        Self { collective: None }
    }

    /// The ranks that `collective` connects.
    pub fn new(collective: Arc<dyn Collective<B>>) -> Self {
        Self {
            collective: Some(collective),
        }
    }

    /// Whether this rank is connected to no others. A world of one rank that was launched as such is connected.
    pub fn is_alone(&self) -> bool {
        self.collective.is_none()
    }

    /// The rank of this process, and the number of ranks.
    pub fn place(&self) -> Place {
        let alone = Place { rank: 0, world: 1 };
        let place = self.collective.as_ref().map(|all| all.place());
        place.unwrap_or(alone)
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.place().rank == 0
    }

    /// The name of the engine that connects them, such as `MPI`; `None` if nothing does.
    pub fn name(&self) -> Option<String> {
        self.collective.as_ref().map(|all| all.name())
    }

    /// The engine that connects the ranks.
    ///
    /// # Panics
    /// If this rank is alone.
    pub(crate) fn collective(&self) -> &dyn Collective<B> {
        let collective = self.collective.as_deref();
        collective.expect("ranks that are connected")
    }

    /// Calls `make` on rank 0 only, and returns its result on all ranks.
    ///
    /// # Errors
    /// The error of `make`; on the other ranks [`TrainError::Ranks`] with its message.
    pub fn from_first<T: Serialize + DeserializeOwned>(
        &self,
        device: &B::Device,
        make: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if self.is_alone() {
            return make();
        }
        let made = self.after_first(device, make)?;
        let words = made.as_ref().map_or(Ok(vec![]), serde_json::to_vec);
        let words = words.map_err(|error| TrainError::Ranks(error.to_string()))?;
        let words = self.broadcast(device, words);
        match made {
            Some(made) => Ok(made),
            None => serde_json::from_slice(&words).map_err(|error| {
                TrainError::Ranks(format!(
                    "what rank 0 says cannot be understood: {error}; all ranks must run the same program"
                ))
            }),
        }
    }

    /// Calls `make` on rank 0 only, and returns on all ranks when it is done; the result is `None` on the others.
    ///
    /// # Errors
    /// As [`from_first`](Self::from_first).
    pub fn after_first<T>(
        &self,
        device: &B::Device,
        make: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<Option<T>, TrainError> {
        if self.is_alone() {
            return make().map(Some);
        }
        let made = self.is_first().then(make);
        let failure = match &made {
            Some(Err(error)) => format!("!{error}"),
            _ => String::new(),
        };
        let failure = self.broadcast(device, failure.into_bytes());
        match made {
            Some(made) => made.map(Some),
            None if failure.is_empty() => Ok(None),
            None => Err(TrainError::Ranks(format!(
                "rank 0 has failed: {}",
                String::from_utf8_lossy(&failure[1..])
            ))),
        }
    }

    /// Calls `make` on rank 0, and after that on the others, which then find in a cache what rank 0 has fetched or
    /// computed.
    ///
    /// # Errors
    /// The errors of `make`; on the other ranks also that of rank 0.
    pub fn first_then_others<T>(
        &self,
        device: &B::Device,
        make: impl Fn() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        match self.after_first(device, &make)? {
            Some(made) => Ok(made),
            None => make(),
        }
    }

    /// Checks that all ranks have the same `value`; `what` is its name in the message.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] with the ranks whose value is not that of rank 0.
    pub fn agree(&self, device: &B::Device, what: &str, value: &str) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        let own = to_numbers(&Sha256::digest(value));
        let length = own.len();
        let gathered = self.collective().all_gather(vec![upload(own, device)]);
        let gathered = gathered.wait_for_one();
        let all = download(gathered);
        let first = &all[..length];
        let others: Vec<_> = (all.chunks(length).enumerate())
            .filter(|(_, other)| *other != first)
            .map(|(rank, _)| rank.to_string())
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(TrainError::Ranks(format!(
            "{what} is not the same on all ranks: that of rank {} differs from that of rank 0; all ranks need the same \
             files and the same program",
            others.join(", ")
        )))
    }

    /// Waits until all ranks are here.
    pub fn barrier(&self, device: &B::Device) {
        if !self.is_alone() {
            let here = upload(vec![0.0], device);
            download(self.collective().all_gather(vec![here]).wait_for_one());
        }
    }

    /// The bytes of rank 0, on all ranks.
    fn broadcast(&self, device: &B::Device, bytes: Vec<u8>) -> Vec<u8> {
        let length = to_numbers(&(bytes.len() as u64).to_le_bytes());
        let ranks = self.collective();
        let length = ranks.broadcast(vec![upload(length, device)]).wait_for_one();
        let mut of_length = [0; 8];
        of_length.copy_from_slice(&to_bytes(&download(length)));
        let length = u64::from_le_bytes(of_length) as usize;
        if length == 0 {
            return vec![];
        }
        let mut own = to_numbers(&bytes);
        own.resize(length, 0.0);
        let all = ranks.broadcast(vec![upload(own, device)]).wait_for_one();
        to_bytes(&download(all))
    }
}

/// One f32 for each byte: small whole numbers arrive unchanged, whatever arithmetic the engine does.
fn to_numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|byte| f32::from(*byte)).collect()
}

fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().map(|number| *number as u8).collect()
}

/// `values` on `device`, in f32.
pub(crate) fn upload<B: KernelBackend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn download<B: KernelBackend>(tensor: Tensor<B, 1>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::thread;

    use kernels::runtime::Flex;
    use kernels::runtime::collective::{OnHost, Threads};

    use super::*;

    /// What `act` returns on each of `world` ranks.
    pub(super) fn on_each<T: Send>(world: usize, act: impl Fn(Ranks<Flex>) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let act = &act;
            let threads: Vec<_> = (Threads::new(world).into_iter())
                .map(|rank| scope.spawn(move || act(Ranks::new(Arc::new(OnHost(rank))))))
                .collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results.collect()
        })
    }

    #[test]
    fn the_first_tells_the_others() {
        let device = Default::default();
        let found = on_each(3, |ranks| {
            let rank = ranks.place().rank;
            ranks
                .from_first(&device, || Ok((rank, "é".repeat(300))))
                .unwrap()
        });
        assert!(
            found
                .iter()
                .all(|(rank, text)| *rank == 0 && text.len() == 600)
        );

        let failures = on_each(2, |ranks| {
            let failed = || -> Result<u8, _> { Err(TrainError::Ranks("no text".into())) };
            ranks.from_first(&device, failed).unwrap_err().to_string()
        });
        assert_eq!(failures, ["no text", "rank 0 has failed: no text"]);
    }

    #[test]
    fn what_differs_is_named() {
        let device = Default::default();
        let found = on_each(3, |ranks| {
            let value = ["a", "a", "b"][ranks.place().rank];
            let agreed = ranks.agree(&device, "the tokenizer", value);
            (
                agreed.unwrap_err().to_string(),
                ranks.agree(&device, "all", "x").is_ok(),
            )
        });
        for (refused, agreed) in found {
            assert!(
                refused.contains("tokenizer") && refused.contains("rank 2 "),
                "{refused}"
            );
            assert!(agreed);
        }
    }

    #[test]
    fn alone_nothing_is_exchanged() {
        let device = Default::default();
        let ranks = Ranks::<Flex>::alone();
        assert_eq!(ranks.from_first(&device, || Ok(7)).unwrap(), 7);
        assert_eq!(ranks.place(), Place { rank: 0, world: 1 });
        ranks.barrier(&device);
        ranks.agree(&device, "all", "x").unwrap();
    }
}
