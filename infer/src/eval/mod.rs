//! The paper's evaluations, as lm-evaluation-harness defines them.
//!
//! ```text
//! files -> Documents -> Requests -> Scores -> Metrics -> table, JSON
//! data     task         encode      score     metrics    table, command
//! ```
//!
//! A [`Task`] turns each record of its data into a [`Document`]: prompts, which are pairs of a context
//! and a continuation, and how their scores are judged. [`requests`] turns prompts into tokens,
//! [`score`](score()) has a model say how likely each continuation is, and [`metrics`](metrics())
//! judges. [`Texts`] makes requests of running text, for its perplexity.
//!
//! # The harness's word
//!
//! A score can be compared with a published one only if a hundred small things are alike: which blank
//! belongs to the continuation, which token stands before an empty context, what is cut when a prompt
//! is too long, what "normalised" divides by. Where the harness's documentation and its code differ,
//! it is the code that made the published numbers, so it is the code that is followed here; and since
//! only comparing tells, recorded results of it are among the tests. `docs/evaluation.md` says how
//! they were made.
//!
//! # One pass a request
//!
//! Choices of one question share their context, and reading it once would save half of the work, but
//! contexts of different lengths cannot share a batch as states, and a batch is worth more than the
//! half. So every request is read whole, the longest first, in batches of like lengths, and only the
//! rows that are scored meet the head.
//!
//! # What was asked is the key
//!
//! Scores that are kept for an interrupted evaluation are filed under the tokens that were asked
//! about, not under task and number: the ledger knows nothing of tasks, limits or data files, and
//! cannot take one document's score for another's when any of these change.

mod command;
mod data;
mod encode;
mod error;
mod ledger;
mod metrics;
mod perplexity;
mod python;
mod score;
mod scoring;
mod table;
mod task;
mod text_command;

pub use command::EvalArgs;
pub use encode::{Request, requests};
pub use error::EvalError;
pub use ledger::Ledger;
pub use metrics::{Metric, metrics};
pub use perplexity::{TextMetrics, Texts};
pub use score::{Score, score};
pub use scoring::ScoringArgs;
pub use table::table;
pub use task::{Document, Prompt, Question, Source, Task};
pub use text_command::PerplexityArgs;
