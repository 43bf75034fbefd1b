//! Collective operations (sums and copies) over several processes with one device each, for data-parallel training.
//!
//! A **rank** is one of the processes, numbered from 0; the **world** is how many there are. All ranks call the same
//! operations in the same order with tensors of the same sizes; if one rank does not call an operation, the others
//! wait.
//!
//! [`Collective`] has an implementation for the memory of NVIDIA GPUs (`nccl`), and [`OnHost`] makes one for any backend
//! of whatever can exchange numbers between the memories of hosts ([`Exchange`]): MPI, or the threads of one process
//! ([`Threads`]), by which the logic above is tested.
//!
//! # What becomes of failures
//!
//! Operations return no errors: those on a GPU are only queued, and MPI ends the process. If the device's thread
//! detects a failure, it panics, and [`check`](super::check) returns this panic as an error. Nothing here detects a
//! rank that has ended: that is the task of the launcher, or of the program that watches its ranks.

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

/// The identifier by which the ranks of one job find each other on their GPUs. Rank 0 makes it, and every rank passes
/// the same one when it joins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JobId(pub [u8; 128]);

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobId")
    }
}

impl JobId {
    /// Makes a new identifier.
    ///
    /// # Errors
    /// [`CollectiveError`] if this build has no CUDA, or if NCCL is not found or fails.
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

/// Operations over all ranks, on flat f32 tensors. Each operation takes a list of tensors and exchanges them together:
/// many small tensors take hardly longer than one tensor of their total size.
pub trait Collective<B: Backend>: Send + Sync {
    /// Which of the ranks this is.
    fn place(&self) -> Place;

    /// The name of the library that exchanges the numbers, such as `NCCL 2.21.5`.
    fn name(&self) -> String;

    /// The sum over all ranks of each of `xs`, which may be written into its memory if nothing else holds that.
    fn all_reduce(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// For each of `xs`, this rank's part of the sum over all ranks. The sum is split into as many equal parts as there
    /// are ranks, and rank `r` gets part `r`. The number of ranks must divide each length.
    fn reduce_scatter(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// For each of `xs`, the tensors of all ranks, concatenated in the order of the ranks.
    fn all_gather(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// Each of `xs`, where part `r` is replaced by that part as rank `r` has it. The tensor is split into as many equal
    /// parts as there are ranks; the number of ranks must divide each length. The result may be written into the memory
    /// of the input if nothing else holds it.
    fn gather_parts(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// For each of `xs`, the tensor of rank 0.
    fn broadcast(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B>;

    /// The message about a rank or a connection that has failed; `None` if no failure is known. Any thread may call
    /// this, also while another thread waits for an operation.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Cancels all queued operations, so that no thread waits for a rank that has ended. No operation works afterwards.
    fn abort(&self) {}
}

/// The results of an operation that may not be complete yet. Work that is queued after [`InFlight::wait`] waits for them
/// on the device; work that is queued before may run at the same time as the operation. No thread of the host waits.
///
/// If it is dropped without `wait`, the device waits all the same, since the operation still uses its memory.
#[must_use]
pub struct InFlight<B: Backend> {
    outputs: Vec<Tensor<B, 1>>,
    /// Queues the device's wait. `None` if nothing has to wait.
    finish: Option<Box<dyn FnOnce() + Send>>,
}

impl<B: Backend> InFlight<B> {
    /// Results that are complete, or that all later work on the device waits for.
    pub fn done(outputs: Vec<Tensor<B, 1>>) -> Self {
        Self {
            outputs,
            finish: None,
        }
    }

    /// Results that later work may read only after `finish` has queued the device's wait for them.
    #[cfg(feature = "cuda")]
    fn begun(outputs: Vec<Tensor<B, 1>>, finish: impl FnOnce() + Send + 'static) -> Self {
        Self {
            outputs,
            finish: Some(Box::new(finish)),
        }
    }

    /// The results, in the order of the operation's list.
    pub fn wait(mut self) -> Vec<Tensor<B, 1>> {
        self.finish();
        std::mem::take(&mut self.outputs)
    }

    /// The result of an operation on one tensor.
    ///
    /// # Panics
    /// If the operation had no tensor.
    pub fn wait_for_one(self) -> Tensor<B, 1> {
        let mut all = self.wait();
        all.pop().expect("the result of an operation on one tensor")
    }

    fn finish(&mut self) {
        if let Some(finish) = self.finish.take() {
            finish();
        }
    }
}

impl<B: Backend> Drop for InFlight<B> {
    fn drop(&mut self) {
        self.finish();
    }
}
