//! Many texts at once: sequences join a running batch and leave it as they come and go.
//!
//! ```text
//! Request -> queue -> Reader: a piece of its prompt at a time
//!                        |
//!                        v
//!                     Tile: a step of all its sequences at a time -> Event, Event, ... -> Answer
//! ```
//!
//! # A text is the one that it is alone
//!
//! What is computed for a sequence does not depend on who else is there. A product of matrices may
//! round differently with the number of its rows, so sequences never take their steps in batches of
//! changing size: a [tile](tile::ROWS) always has the same number of rows, of which some are empty,
//! and one row is computed without a look at another. Prompts are read one at a time, in pieces that
//! are always cut at the same places. Each sequence has its own random numbers, penalties and stop
//! strings. So the same request gives the same text, to the bit of its scores, whatever the load.
//!
//! # One thread
//!
//! The model, the states and the loop live on one thread, in a pool of their own for what the CPU's
//! ops share out: whoever encodes text meanwhile, on the pool that all programs share, neither waits
//! for the engine nor holds it up. Requests come by a queue of bounded length, whose end is where to
//! say that there are too many ([`SubmitError::Full`]); what is made goes out by a queue for each
//! sequence, which holds no more than its text. An answer that is dropped ends its sequence before
//! the next round, in which its row is free for another, or gives its place in the queue away.
//!
//! # A round
//!
//! Every round reads one piece of one prompt, in turns, and then takes one step of every tile: a long
//! prompt makes the others' next tokens a little later, and keeps no other prompt from being read.
//! Requests that come together and share their prompt (by its pointer) have it read once, as far as
//! there are slots for them.
//!
//! # What is done where
//!
//! Tokens are chosen on the device where it can, each row of a tile by its own settings, penalties and
//! random numbers, and eight ids come back. The logits come to the host where it has to choose, for the
//! first token behind a prompt, and for requests that ask for scores.
//!
//! In a model in bf16 or f16, the logits at every position of a prompt, which only `echo` with
//! `logprobs` needs, are in that format too, while those that a text goes on from without it are in
//! f32. So with `echo` and `logprobs` the scores of a prompt, and its first token, are coarser there.

mod batcher;
mod device;
mod gauges;
mod reader;
mod request;
mod score;
mod sequence;
mod text;
mod tile;

use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};

use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, BackendError, Work};
use model::ModelConfig;
use tokio::sync::{Semaphore, mpsc};

pub use gauges::Gauges;
pub use request::{Answer, End, Event, Finish, Piece, Request, Token};
pub use score::Score;

use crate::GenerateError;
use crate::generate::check_prompt;
use crate::precision::{Precision, PrecisionError};
use batcher::Batcher;
use sequence::Job;

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineOptions {
    /// What computes.
    pub backend: Backend,
    /// The model's folder.
    pub model: PathBuf,
    /// What its parameters are kept in.
    pub precision: Precision,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The most sequences at work at a time, at least 1.
    pub slots: usize,
    /// The most that wait beside them, at least 1.
    pub queue: usize,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend cannot be used, or has failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] PrecisionError),
    /// The system gives no more threads.
    #[error("no threads for the engine: {0}")]
    Threads(String),
    /// Its thread has ended by itself.
    #[error("the engine has stopped by a fault of its own: {0}")]
    Panicked(String),
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It can never be answered.
    #[error(transparent)]
    Invalid(#[from] GenerateError),
    /// Nor can more requests at once than can ever wait.
    #[error("{requests} texts at once; at most {queue} can wait")]
    TooMany {
        /// How many there were.
        requests: usize,
        /// The queue's length.
        queue: usize,
    },
    /// Too many others wait.
    #[error("too many requests are waiting; try again later")]
    Full,
    /// The engine has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// What is known of the model.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its configuration.
    pub config: ModelConfig,
    /// Ids below this have an embedding.
    pub vocab_size: usize,
    /// The positions that attention was trained on, where that limits the model.
    pub max_positions: Option<usize>,
}

/// A model at work on a thread of its own. When it is dropped no more requests come, and the thread
/// ends when those that it has taken are done.
pub struct Engine {
    /// The requests that come together, together.
    jobs: mpsc::UnboundedSender<Vec<Job>>,
    /// The places of the queue that are free.
    places: Arc<Semaphore>,
    queue: usize,
    facts: Facts,
    gauges: Arc<Gauges>,
    slots: usize,
}

/// The thread of an [`Engine`].
pub struct EngineThread(JoinHandle<Result<(), EngineError>>);

impl Engine {
    /// Loads the model and waits until it is there.
    ///
    /// # Errors
    ///
    /// Every [`EngineError`].
    pub fn start(options: EngineOptions) -> Result<(Self, EngineThread), EngineError> {
        let (jobs, coming) = mpsc::unbounded_channel();
        let (ready, facts) = std_mpsc::sync_channel(1);
        let gauges = Arc::new(Gauges::default());
        let (backend, slots, shown) = (options.backend, options.slots, gauges.clone());
        let queue = options.queue;
        let serve = move || -> Result<(), EngineError> {
            let pool = rayon::ThreadPoolBuilder::new()
                .thread_name(|i| format!("engine-{i}"))
                .build()
                .map_err(|error| EngineError::Threads(error.to_string()))?;
            let work = Serve {
                options,
                coming,
                ready,
                gauges: shown,
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
                };
                Ok((engine, thread))
            }
            // It has ended before it was ready, and says why.
            Err(_) => Err(match thread.join() {
                Err(error) => error,
                Ok(()) => EngineError::Panicked("it ended before it began".into()),
            }),
        }
    }

    /// What is known of the model.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the engine shows of itself.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// The most sequences at work at a time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The most requests that wait beside them.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.queue - self.places.available_permits()
    }

    /// Takes some requests, all or none, and gives their answers in the same order.
    ///
    /// # Errors
    ///
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
        let each = requests.into_iter().map(|request| {
            let (answer, events) = mpsc::unbounded_channel();
            let job = Job {
                request,
                answer,
                _place: places.split(1),
            };
            (job, Answer { events })
        });
        let (jobs, answers) = each.unzip();
        self.jobs.send(jobs).map_err(|_| SubmitError::Stopped)?;
        Ok(answers)
    }

    /// Waits for the engine to end, which it does by itself only for a fault of its own.
    pub async fn stopped(&self) {
        self.jobs.closed().await;
    }

    /// Whether it has.
    pub fn has_stopped(&self) -> bool {
        self.jobs.is_closed()
    }
}

impl EngineThread {
    /// Waits until it has ended, which it does when its [`Engine`] has been dropped and its work is
    /// done, and says how.
    ///
    /// # Errors
    ///
    /// [`EngineError::Backend`] and [`EngineError::Panicked`].
    pub fn join(self) -> Result<(), EngineError> {
        self.0.join().unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied());
            Err(EngineError::Panicked(said.unwrap_or("no word").into()))
        })
    }
}

/// What the engine's thread does.
struct Serve {
    options: EngineOptions,
    coming: mpsc::UnboundedReceiver<Vec<Job>>,
    ready: std_mpsc::SyncSender<Facts>,
    gauges: Arc<Gauges>,
}

impl Work for Serve {
    type Output = Result<(), EngineError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (config, model) = self
            .options
            .precision
            .load::<B>(&self.options.model, &device)?;
        let max_positions = config.max_positions();
        let facts = Facts {
            config,
            vocab_size: model.vocab_size(),
            max_positions,
        };
        // Whoever has started the engine waits for this.
        let _ = self.ready.send(facts);
        let batcher = Batcher {
            model: &model,
            device,
            tokenizer: &self.options.tokenizer,
            max_positions,
            slots: self.options.slots,
            gauges: &self.gauges,
        };
        batcher.run(self.coming);
        Ok(())
    }
}
