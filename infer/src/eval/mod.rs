//! The paper's evaluations, as lm-evaluation-harness defines them.
//!
//! ```text
//! files -> Documents -> ScoreRequests -> Scores -> Metrics -> table
//! data     task         encode           score     metrics    table
//! ```
//!
//! A [`Task`] turns each record of its data into a [`Document`]: prompts, which are pairs of a context
//! and a continuation, and the rule by which their scores are judged. [`requests`] turns prompts into
//! tokens, [`score`](score()) computes how likely each continuation is, and [`metrics`](metrics())
//! judges. [`Texts`] turns running text into requests, for its perplexity.
//!
//! The probes, `needle`, `needles`, `copy` and `mqar`, are tasks whose documents are made by [`datasets::probes`], for the
//! tokenizer of the model. They ask what the paper's tasks hardly ask: whether a model finds again what it has read.
//!
//! # The harness's code decides
//!
//! A score can be compared with a published one only if many details agree: which blank belongs to the
//! continuation, which token stands before an empty context, what is cut from a prompt that is too long,
//! what "normalised" divides by. Where the harness's documentation and its code differ, the code made the
//! published numbers, so the code is followed here. Recorded results of the harness are among the tests;
//! `docs/evaluation.md` says how they were made.
//!
//! # One pass per request
//!
//! Choices of one question share their context, and reading it once would save half of the work. But
//! states after contexts of different lengths cannot share a batch, and a batch saves more than that
//! half. So every request is read whole, the longest first, in batches of similar lengths, and the head
//! is computed only for the positions that are scored.
//!
//! # Scores are kept by their tokens
//!
//! The scores of an interrupted evaluation are kept on disk by the tokens of the request, not by task and
//! number. So the [`Ledger`] does not depend on tasks, limits or data files, and never takes the score of
//! one document for another's when any of these change.

mod control;
mod data;
mod document;
mod encode;
mod error;
mod ledger;
mod metrics;
mod perplexity;
mod python;
mod records;
mod score;
mod table;
mod task;

pub(crate) use datasets::probes::{DOCUMENTS, LENGTHS, SEED};
pub use datasets::probes::{ProbeSizes, Prompt};

pub use control::{Control, ControlError};
pub use document::{Document, Question};
pub use encode::{ScoreRequest, requests};
pub use error::EvalError;
pub(crate) use error::cannot;
pub use ledger::Ledger;
pub use metrics::{Metric, metrics};
pub(crate) use metrics::{is_right, is_right_by_length};
pub use perplexity::{TextMetrics, Texts};
pub use score::{Score, TokenScore, score, score_tokens};
pub use table::table;
pub use task::{Source, Task};
