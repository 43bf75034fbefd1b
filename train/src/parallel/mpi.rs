//! Ranks that MPI connects: CPUs, or GPUs without NCCL.
//!
//! Sums are computed here, in the order of the ranks, and MPI only moves numbers: MPI's own sums may have another order
//! in another run.

use kernels::runtime::collective::{Exchange, Place};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Threading, initialize_with_threading};

/// MPI in this process. Dropping it ends MPI, which waits for all ranks; [`abort`] does not wait.
pub(super) struct Process {
    _universe: Universe,
}

impl Process {
    /// Starts MPI, which must find as many processes as the launcher says.
    ///
    /// # Errors
    /// A message in one sentence.
    pub(super) fn start(expected: Place) -> Result<Self, String> {
        let (universe, threading) = initialize_with_threading(Threading::Serialized)
            .ok_or("MPI was started before in this process")?;
        if threading < Threading::Serialized {
            return Err("this MPI cannot be used by another thread than the first".into());
        }
        let world = universe.world();
        let found = (world.rank() as usize, world.size() as usize);
        if found != (expected.rank, expected.world) {
            return Err(format!(
                "MPI says that this is rank {} of {}, and the launcher's variables say rank {} of {}; start ranks on \
                 CPUs by mpirun, or by srun --mpi=pmix",
                found.0, found.1, expected.rank, expected.world
            ));
        }
        Ok(Self {
            _universe: universe,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The other ranks may wait for something that this rank will not do any more.
        if std::thread::panicking() {
            abort();
        }
    }
}

/// Ends all ranks at once.
pub(super) fn abort() -> ! {
    SimpleCommunicator::world().abort(1)
}

/// The ranks of [`Process`].
pub(super) struct Mpi(pub(super) Place);

impl Exchange for Mpi {
    fn place(&self) -> Place {
        self.0
    }

    fn name(&self) -> String {
        "MPI".into()
    }

    fn reduce_scatter(&self, x: &[f32]) -> Vec<f32> {
        let length = x.len() / self.0.world;
        if length == 0 {
            return vec![];
        }
        // The parts of all ranks that are to become this rank's sum, by rank.
        let mut parts = vec![0f32; x.len()];
        SimpleCommunicator::world().all_to_all_into(x, &mut parts[..]);
        let mut parts = parts.chunks_exact(length);
        let mut sum = parts.next().map_or(vec![], <[f32]>::to_vec);
        for part in parts {
            for (sum, x) in sum.iter_mut().zip(part) {
                *sum += x;
            }
        }
        sum
    }

    fn all_gather(&self, x: &[f32]) -> Vec<f32> {
        let mut all = vec![0f32; x.len() * self.0.world];
        SimpleCommunicator::world().all_gather_into(x, &mut all[..]);
        all
    }

    fn broadcast(&self, x: &mut [f32]) {
        let world = SimpleCommunicator::world();
        world.process_at_rank(0).broadcast_into(x);
    }
}
