//! The ranks of this process' job: how it joins them and how it ends.

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

/// The processes of which this is one.
pub struct World {
    launch: Option<Launch>,
    engine: Engine,
    /// Lets go of what waits for a rank that is gone.
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
    /// GPUs, which the backend connects.
    Device(Box<Rendezvous>),
}

impl World {
    /// Joins the processes that the environment tells of: on NVIDIA GPUs by a connection to rank 0, which waits for all of
    /// them, else by MPI. To be called on the program's first thread, which MPI asks for.
    ///
    /// # Errors
    /// [`TrainError::Ranks`], in a sentence.
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

    /// Which of them this is; `None` if there are no others.
    pub fn place(&self) -> Option<Place> {
        match self.engine {
            Engine::Alone => None,
            _ => self.launch.as_ref().map(|launch| launch.place),
        }
    }

    /// Whether this process says and writes what all have done.
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

    /// The ranks, for tensors on `device`. On GPUs this waits for all of them; from then on this process ends if another
    /// one is gone.
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

    /// Ends the process when `collective` says that it has failed, since what waits for it would wait for ever.
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

    /// All is done: the others need not worry that this process ends. Waits for nobody, but for MPI.
    pub fn end(self) {
        if let Engine::Device(rendezvous) = &self.engine {
            rendezvous.end();
        }
    }

    /// Whether it suffices that this process ends, for the others to notice that it has failed.
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
            // Rank 0 may have the better reason, and needs the time to say it.
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

/// Says `reason` and ends the process, whatever its other threads wait for.
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
