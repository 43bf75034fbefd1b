//! Sums and copies over several processes, each with one device: what data-parallel training needs.
//!
//! A **rank** is one of the processes, numbered from 0; the **world** is how many there are. All ranks call the same
//! operations in the same order with tensors of the same sizes; a rank that does not call one lets the others wait.
//!
//! [`Collective`] has an implementation for the memory of NVIDIA GPUs (`nccl`), and [`OnHost`] makes one for any backend
//! of whatever can exchange numbers between the memories of hosts ([`Exchange`]): MPI, or the threads of one process
//! ([`Threads`]), by which the logic above is tested.
//!
//! # What becomes of failures
//!
//! Operations return no errors: a GPU's are queued, and those of MPI end the process. A failure that is known to the
//! device's thread is a panic there, which [`check`](super::check) returns. Nothing here notices a
//! rank that has gone: the launcher does, or the program that watches its ranks.

#[cfg(feature = "cuda")]
pub(crate) mod nccl;
mod on_host;
mod threads;

pub use on_host::{Exchange, OnHost};
pub use threads::Threads;

use std::fmt;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Which of the ranks a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub world: usize,
}

/// Why ranks cannot work together, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveError(pub String);

impl fmt::Display for CollectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CollectiveError {}

/// By what the ranks of one job find each other on their GPUs: rank 0 makes it, and all have it when they join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JobId(pub [u8; 128]);

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobId")
    }
}

impl JobId {
    /// A new one.
    ///
    /// # Errors
    /// That this build has no CUDA, or that NCCL is not to be found or fails.
    pub fn new() -> Result<Self, CollectiveError> {
        #[cfg(feature = "cuda")]
        let id = nccl::new_id();
        #[cfg(not(feature = "cuda"))]
        let id = Err(CollectiveError(
            "this build has no NCCL; build with `--features cuda`".into(),
        ));
        id
    }
}

/// Operations over all ranks, on flat tensors in f32. Each takes a list of tensors, which go together: one operation on
/// many small tensors takes hardly longer than on one of their size.
pub trait Collective<B: Backend>: Send + Sync {
    /// Which of the ranks this is.
    fn place(&self) -> Place;

    /// What carries the numbers, as `NCCL 2.21.5`.
    fn name(&self) -> String;

    /// The sum over all ranks of each of `xs`, which may be written into its memory if nothing else holds that.
    fn all_reduce(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// This rank's part of the sum over all ranks of each of `xs`, whose lengths the world divides: the part of that
    /// number.
    fn reduce_scatter(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// For each of `xs` those of all ranks, one behind the other.
    fn all_gather(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// Each of `xs`, whose lengths the world divides, with the part of each number as the rank of that number has it. It
    /// may be written into its memory if nothing else holds that.
    fn gather_parts(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// Each of `xs` of rank 0.
    fn broadcast(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// What this engine says of a rank or a connection that has failed; `None` if all is well as far as it knows. May be
    /// asked by any thread, also while another waits for an operation.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Gives up all that is queued, so that no thread waits for a rank that is gone. Nothing works afterwards.
    fn abort(&self) {}
}

/// The results of an operation, which may still be on their way: what is queued from now on waits for them, and no thread
/// does.
#[must_use]
pub struct InFlight<B: Backend> {
    outputs: Vec<Tensor<B, 1>>,
}

impl<B: Backend> InFlight<B> {
    /// Those that have arrived, or that all later work on the device waits for.
    pub fn done(outputs: Vec<Tensor<B, 1>>) -> Self {
        Self { outputs }
    }

    /// The results, in the order of the operation's list.
    pub fn wait(self) -> Vec<Tensor<B, 1>> {
        self.outputs
    }

    /// The same of an operation on one tensor.
    ///
    /// # Panics
    /// If it was on none.
    pub fn wait_for_one(self) -> Tensor<B, 1> {
        let mut all = self.wait();
        all.pop().expect("the result of an operation on one tensor")
    }
}
