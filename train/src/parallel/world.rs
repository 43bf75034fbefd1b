//! The ranks of this process' job: how a process joins them and how it ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kernels::KernelBackend;
use kernels::runtime::Backend;
use kernels::runtime::collective::{Collective, JobId, Place};

use super::Ranks;
use super::launch::Launch;
use super::rendezvous::{Patience, Rendezvous};
use crate::error::TrainError;
use crate::logging::say;

/// How often an engine is asked whether it has failed.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an engine may take to give up.
const GIVE_UP: Duration = Duration::from_secs(3);

/// The processes of a job, of which this process is one.
pub struct World {
    launch: Option<Launch>,
    engine: Engine,
    /// Aborts calls that wait for a rank that has ended.
    abort: Arc<Mutex<Option<Abort>>>,
}

type Abort = Box<dyn Fn() + Send>;

enum Engine {
    Alone,
    #[cfg(feature = "mpi")]
    Mpi {
        place: Place,
        _process: super::mpi::Process,
    },
    /// GPUs, connected by the backend.
    Device(Box<Rendezvous>),
}

impl World {
    /// Joins the processes that the environment describes: on NVIDIA GPUs by a connection to rank 0, which waits for
    /// all of them, otherwise by MPI. Must be called on the program's first thread, since MPI requires that.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] with a message in one sentence.
    pub fn open(backend: Backend) -> Result<Self, TrainError> {
        let launch = Launch::from_environment();
        let launch = launch.map_err(|error| TrainError::Ranks(error.to_string()))?;
        let engine = match &launch {
            None => Engine::Alone,
            Some(launch) => open(launch, backend).map_err(TrainError::Ranks)?,
        };
        Ok(Self {
            launch,
            engine,
            abort: Arc::default(),
        })
    }

    /// The rank of this process, and the number of ranks; `None` for a single process.
    pub fn place(&self) -> Option<Place> {
        match self.engine {
            Engine::Alone => None,
            _ => self.launch.as_ref().map(|launch| launch.place),
        }
    }

    /// Whether this process prints and writes the common results.
    pub fn is_first(&self) -> bool {
        self.place().is_none_or(|place| place.rank == 0)
    }

    /// The GPU of this process, from 0, of those that it sees.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if it sees too few.
    pub fn gpu(&self, backend: Backend) -> Result<usize, TrainError> {
        let (Some(launch), Some(gpus)) = (&self.launch, backend.gpus()) else {
            return Ok(0);
        };
        match launch.local_rank {
            // Each process was given its own.
            _ if gpus == 1 => Ok(0),
            own if own < gpus => Ok(own),
            own => Err(TrainError::Ranks(format!(
                "this is process {own} on its host, from 0, and it sees {gpus} GPUs: start one process for each GPU"
            ))),
        }
    }

    /// Connects the ranks, for tensors on `device`. On GPUs this waits for all of them; from then on this process ends
    /// if another rank ends.
    ///
    /// # Errors
    /// [`TrainError::Ranks`].
    pub fn join<B: KernelBackend>(&self, device: &B::Device) -> Result<Ranks<B>, TrainError> {
        match &self.engine {
            Engine::Alone => Ok(Ranks::alone()),
            #[cfg(feature = "mpi")]
            Engine::Mpi { place, .. } => {
                let ranks = kernels::runtime::collective::OnHost(super::mpi::Mpi(*place));
                Ok(Ranks::new(Arc::new(ranks)))
            }
            Engine::Device(rendezvous) => {
                let failed = |error: String| TrainError::Ranks(error);
                let abort = self.abort.clone();
                let watch = rendezvous.watch(move |rank| {
                    end_process(
                        &format!("rank {rank} has ended or does not answer, and no rank can go on without it"),
                        &abort,
                    )
                });
                watch.map_err(|error| failed(error.to_string()))?;
                let joined = B::join(device, rendezvous.place(), rendezvous.id());
                let collective: Arc<dyn Collective<B>> =
                    joined.map_err(|error| failed(error.to_string()))?.into();
                self.look_after(&collective);
                Ok(Ranks::new(collective))
            }
        }
    }

    /// Ends the process when `collective` reports a failure, since threads that wait for it would wait for ever.
    fn look_after<B: KernelBackend>(&self, collective: &Arc<dyn Collective<B>>) {
        let to_abort = collective.clone();
        let mut abort = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        *abort = Some(Box::new(move || to_abort.abort()));
        drop(abort);
        let (asked, abort) = (Arc::downgrade(collective), self.abort.clone());
        let rank = collective.place().rank;
        thread::spawn(move || {
            loop {
                thread::sleep(ASK_EVERY);
                let Some(collective) = asked.upgrade() else {
                    return;
                };
                if let Some(reason) = collective.failure() {
                    let reason = format!("rank {rank}: {} has failed: {reason}", collective.name());
                    end_process(&reason, &abort);
                }
            }
        });
    }

    /// Tells the others that this process has finished and may end. Only MPI waits for the other ranks.
    pub fn end(self) {
        if let Engine::Device(rendezvous) = &self.engine {
            rendezvous.end();
        }
    }

    /// Whether the other processes notice a failure by the end of this process alone.
    pub fn fails_alone(&self) -> bool {
        #[cfg(feature = "mpi")]
        if matches!(self.engine, Engine::Mpi { .. }) {
            return false;
        }
        true
    }

    /// Ends this process, which has failed, and the others with it.
    pub fn fail(&self) -> ! {
        #[cfg(feature = "mpi")]
        if let Engine::Mpi { place, .. } = &self.engine {
            // Rank 0 may have a better explanation, and needs time to print it.
            if place.rank != 0 {
                thread::sleep(Duration::from_secs(1));
            }
            super::mpi::abort();
        }
        std::process::exit(1)
    }
}

fn open(launch: &Launch, backend: Backend) -> Result<Engine, String> {
    if backend.name() == "cuda" {
        let new_id = || JobId::new().map_err(|error| error.to_string());
        let joined = Rendezvous::join(launch, Patience::default(), new_id)?;
        return Ok(Engine::Device(Box::new(joined)));
    }
    if launch.place.world == 1 {
        return Ok(Engine::Alone);
    }
    #[cfg(feature = "mpi")]
    {
        let process = super::mpi::Process::start(launch.place)?;
        Ok(Engine::Mpi {
            place: launch.place,
            _process: process,
        })
    }
    #[cfg(not(feature = "mpi"))]
    Err(format!(
        "this is rank {} of {} on the backend {}, whose ranks MPI connects, which this build lacks; build with \
         `--features mpi`, or unset the launcher's variables",
        launch.place.rank,
        launch.place.world,
        backend.name()
    ))
}

/// Prints `reason` and ends the process, even if its other threads are waiting.
fn end_process(reason: &str, abort: &Mutex<Option<Abort>>) -> ! {
    say(format_args!(
        "error: {reason}; after that, continue from the last checkpoint by --resume"
    ));
    let abort = abort.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(abort) = abort {
        thread::spawn(abort);
        thread::sleep(GIVE_UP);
    }
    // A driver that waits for the device may not let a process exit.
    thread::spawn(|| {
        thread::sleep(GIVE_UP);
        std::process::abort()
    });
    std::process::exit(1)
}
