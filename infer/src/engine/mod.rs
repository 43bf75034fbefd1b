//! Continuous batching: many texts at once, whose sequences join a running batch and leave it at any step.
//!
//! ```text
//! Request -> queue -> Reader: a piece of its prompt at a time
//!                        |
//!                        v
//!                     Tile: a step of all its sequences at a time -> Event, Event, ... -> Answer
//! ```
//!
//! # A text does not depend on the load
//!
//! The numbers of a sequence do not depend on the other sequences. A matrix product may round differently for another
//! number of rows, so the size of a batch never changes: a tile always has the same number of rows, some of them empty,
//! and each row is computed independently. Prompts are read one at a time, in pieces that are always cut at the same
//! places. Each sequence has its own random numbers, penalties and stop strings. So the same request gives the same
//! text and, to the bit, the same scores, under any load.
//!
//! # One thread
//!
//! The model, the states and the loop are on one thread, with a separate thread pool for the ops on a CPU. So work on
//! the global pool, such as encoding text, neither waits for the engine nor delays it. Requests come through a queue of
//! limited length; if it is full, a request is refused ([`SubmitError::Full`]). Each sequence has a queue for its
//! results, which contains at most its text. When an answer is dropped, its sequence ends before the next round and its
//! row becomes free; if the request still waits, it loses its place in the queue. When the deadline of a request
//! passes, its text ends there, also if it still waits.
//!
//! # Turns
//!
//! The requests of one [`submit`](Engine::submit) have one owner. Owners take turns, both in the queue and in the
//! reading of prompts. An owner gets its first slot as soon as one is free. A single owner gets all slots. While
//! several owners wait, and for a second after one has come while another was there, an owner gets further slots only
//! as long as it then has at most twice as many as are still free. So an owner that finds all slots taken waits only
//! until the first text ends, not until all end, and the owners after it find a free slot.
//!
//! # A round
//!
//! Every round reads one piece of one prompt, in turns, and then takes one step of every tile. So a long
//! prompt delays the next tokens of the other sequences by one piece only, and blocks no other prompt.
//! Requests that are submitted together and share their prompt (the same `Arc`) have it read once, as far
//! as there are slots for them.
//!
//! # Where tokens are chosen
//!
//! If the device has a kernel for it, it chooses the tokens: each row of a tile by its own settings, penalties and
//! random numbers, and eight ids are copied to the host. The logits are copied if the host has to choose, for the first
//! token after a prompt, and for requests that ask for scores.
//!
//! If no logits are copied, the device is one step ahead of the host: it gets the next step of a tile before the host
//! has read the tokens of this step and written them to the texts. A sequence that joins a tile takes part from the
//! step after that one on; if a sequence has ended meanwhile, the result of its row is not used.
//!
//! In a model in bf16 or f16, the logits at all positions of a prompt, which are only needed for `echo` with
//! `logprobs`, are in that dtype too, while the logits of the first token without `echo` are in f32. So with `echo` and
//! `logprobs`, the scores of a prompt and its first token are less precise.

mod batcher;
mod gauges;
mod reader;
mod request;
mod score;
mod sequence;
mod text;
mod tile;
mod turns;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::runtime::{Backend, BackendError, Work};
use model::ModelConfig;
use tokio::sync::{Semaphore, mpsc};

pub use gauges::Gauges;
pub use request::{Answer, End, Event, Finish, Piece, Request, Token};
pub use score::TokenScore;

use crate::end_tokens::{EndTokens, EndTokensError};
use crate::error::GenerateError;
use crate::generate::check_prompt;
use crate::precision::{Precision, PrecisionError};
use batcher::Batcher;
use sequence::Job;

/// The model of an engine, and how many texts it takes.
#[derive(Clone)]
pub struct EngineOptions {
    /// The backend that computes.
    pub backend: Backend,
    /// The model's folder.
    pub model: PathBuf,
    /// The precision of its parameters.
    pub precision: Precision,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The most sequences that are computed at a time, at least 1.
    pub slots: usize,
    /// The most requests that wait beside them, at least 1.
    pub queue: usize,
}

/// Why an engine cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend cannot be used, or has failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] PrecisionError),
    /// The tokens that end a text cannot be determined.
    #[error(transparent)]
    EndTokens(#[from] EndTokensError),
    /// A thread cannot be started.
    #[error("no threads for the engine: {0}")]
    Threads(String),
    /// The engine's thread has panicked, which is a bug in this program.
    #[error("the engine has stopped by a fault: {0}")]
    Panicked(String),
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The request can never be answered.
    #[error(transparent)]
    Invalid(#[from] GenerateError),
    /// More requests at once than the queue has places.
    #[error("{requests} texts at once; at most {queue} can wait")]
    TooMany {
        /// The number of requests.
        requests: usize,
        /// The queue's length.
        queue: usize,
    },
    /// The queue is full.
    #[error("too many requests are waiting; try again later")]
    Full,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// The model of an engine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The model's configuration.
    pub config: ModelConfig,
    /// The size of the model's vocabulary, padding included.
    pub vocab_size: usize,
    /// The number of positions that attention was trained on; `None` for a model without attention.
    pub max_positions: Option<usize>,
}

/// A model that answers requests on a separate thread. After the engine is dropped, no more requests can be submitted,
/// and the thread ends when all submitted requests are done.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use datasets::Tokenizer;
/// use infer::engine::{Engine, EngineOptions, Event, Request};
/// use infer::{SamplingSettings, precision::Precision};
/// use kernels::runtime::Backend;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tokenizer = Arc::new(Tokenizer::from_folder("assets/phi-tiny")?);
/// let (engine, thread) = Engine::start(EngineOptions {
///     backend: Backend::preferred().ok_or("no backend in this build")?,
///     model: "assets/phi-tiny".into(),
///     precision: Precision::Auto,
///     tokenizer: tokenizer.clone(),
///     slots: 8,
///     queue: 64,
/// })?;
/// let request = Request::new(tokenizer.encode("It was the best of times")?, 40);
/// for mut answer in engine.submit(vec![request])? {
///     while let Some(event) = answer.blocking_next() {
///         if let Event::Text(piece) = event {
///             print!("{}", piece.text);
///         }
///     }
/// }
/// drop(engine);
/// thread.join()?;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    /// Each message holds the requests of one [`submit`](Engine::submit).
    jobs: mpsc::UnboundedSender<Vec<Job>>,
    /// The free places of the queue.
    places: Arc<Semaphore>,
    queue: usize,
    facts: Facts,
    gauges: Arc<Gauges>,
    slots: usize,
    /// The number of calls of [`submit`](Engine::submit).
    owners: AtomicU64,
    /// The moment at which every text ends, if there is one.
    last_moment: Arc<OnceLock<Instant>>,
}

/// The thread of an [`Engine`].
pub struct EngineThread(JoinHandle<Result<(), EngineError>>);

impl Engine {
    /// Starts the engine's thread, and waits until the model is loaded.
    ///
    /// # Errors
    /// Every [`EngineError`].
    pub fn start(options: EngineOptions) -> Result<(Self, EngineThread), EngineError> {
        let (jobs, coming) = mpsc::unbounded_channel();
        let (ready, facts) = std_mpsc::sync_channel(1);
        let gauges = Arc::new(Gauges::default());
        let (backend, slots, shown) = (options.backend, options.slots, gauges.clone());
        let queue = options.queue;
        let last_moment = Arc::new(OnceLock::new());
        let last = last_moment.clone();
        let serve = move || -> Result<(), EngineError> {
            let pool = rayon::ThreadPoolBuilder::new()
                .thread_name(|i| format!("engine-{i}"))
                .build()
                .map_err(|error| EngineError::Threads(error.to_string()))?;
            let work = EngineWork {
                options,
                coming,
                ready,
                gauges: shown,
                last_moment: last,
            };
            pool.install(|| backend.dispatch(work))?
        };
        let thread = thread::Builder::new().name("engine".into()).spawn(serve);
        let thread = thread.map_err(|error| EngineError::Threads(error.to_string()))?;
        let thread = EngineThread(thread);
        match facts.recv() {
            Ok(facts) => {
                let engine = Self {
                    jobs,
                    places: Arc::new(Semaphore::new(queue)),
                    queue,
                    facts,
                    gauges,
                    slots,
                    owners: AtomicU64::new(0),
                    last_moment,
                };
                Ok((engine, thread))
            }
            // The thread has ended before the model was loaded; its result says why.
            Err(_) => Err(match thread.join() {
                Err(error) => error,
                Ok(()) => EngineError::Panicked("it ended before it began".into()),
            }),
        }
    }

    /// The engine's model.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The engine's counters.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// The most sequences that are computed at a time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The most requests that wait beside them.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// The number of requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue - self.places.available_permits()
    }

    /// Queues all of the requests, or none of them, and returns their answers in the same order.
    ///
    /// # Errors
    /// Every [`SubmitError`].
    pub fn submit(&self, requests: Vec<Request>) -> Result<Vec<Answer>, SubmitError> {
        for request in &requests {
            request.sampling.validate().map_err(GenerateError::from)?;
            let (positions, vocab_size) = (self.facts.max_positions, self.facts.vocab_size);
            check_prompt(&request.prompt, positions, vocab_size)?;
        }
        let (count, queue) = (requests.len(), self.queue);
        let too_many = SubmitError::TooMany {
            requests: count,
            queue,
        };
        let count = u32::try_from(count).ok().filter(|_| count <= queue);
        let count = count.ok_or(too_many)?;
        if self.has_stopped() {
            return Err(SubmitError::Stopped);
        }
        let places = self.places.clone().try_acquire_many_owned(count);
        let mut places = places.map_err(|_| SubmitError::Full)?;
        let owner = self.owners.fetch_add(1, Relaxed);
        let each = requests.into_iter().map(|request| {
            let (answer, events) = mpsc::unbounded_channel();
            let job = Job {
                request,
                answer,
                owner,
                _place: places.split(1),
            };
            (job, Answer { events })
        });
        let (jobs, answers) = each.unzip();
        self.jobs.send(jobs).map_err(|_| SubmitError::Stopped)?;
        Ok(answers)
    }

    /// Ends every text at `moment`, as if that were its deadline, unless it ends earlier. Only the first call has an
    /// effect.
    pub fn end_at(&self, moment: Instant) {
        let _ = self.last_moment.set(moment);
    }

    /// The moment at which every text ends, if there is one.
    pub fn last_moment(&self) -> Option<Instant> {
        self.last_moment.get().copied()
    }

    /// Waits until the engine has stopped. While this value exists, the engine only stops after a failure.
    pub async fn stopped(&self) {
        self.jobs.closed().await;
    }

    /// Whether the engine has stopped.
    pub fn has_stopped(&self) -> bool {
        self.jobs.is_closed()
    }
}

impl EngineThread {
    /// Waits until the thread has ended: after its [`Engine`] was dropped and all requests are done.
    ///
    /// # Errors
    /// [`EngineError::Backend`] if the device has failed, and [`EngineError::Panicked`].
    pub fn join(self) -> Result<(), EngineError> {
        self.0.join().unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied());
            Err(EngineError::Panicked(
                said.unwrap_or("no reason given").into(),
            ))
        })
    }
}

/// The work of the engine's thread.
struct EngineWork {
    options: EngineOptions,
    coming: mpsc::UnboundedReceiver<Vec<Job>>,
    ready: std_mpsc::SyncSender<Facts>,
    gauges: Arc<Gauges>,
    last_moment: Arc<OnceLock<Instant>>,
}

impl Work for EngineWork {
    type Output = Result<(), EngineError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let folder = &self.options.model;
        // The configuration is checked before gigabytes of weights are read.
        let config = model::load_config(folder).map_err(PrecisionError::from)?;
        let vocab_size = config.network().vocab_size;
        let end_tokens = EndTokens::of(folder, &self.options.tokenizer, vocab_size)?;
        let (config, model) = self.options.precision.load::<B>(folder, &device)?;
        let max_positions = config.max_positions();
        let facts = Facts {
            config,
            vocab_size: model.vocab_size(),
            max_positions,
        };
        // `Engine::start` waits for this.
        let _ = self.ready.send(facts);
        let batcher = Batcher {
            model: &model,
            device,
            tokenizer: &self.options.tokenizer,
            end_tokens: &end_tokens,
            max_positions,
            slots: self.options.slots,
            gauges: &self.gauges,
            last_moment: &self.last_moment,
        };
        batcher.run(self.coming);
        Ok(())
    }
}
