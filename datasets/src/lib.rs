//! Text in, token windows out.
//!
//! A corpus goes one way through this crate:
//!
//! ```text
//! files -> documents -> token ids -> shards on disk -> windows -> batches
//! source   split        tokenizer    prepare, shards   windows    windows + permutation
//! ```
//!
//! [`TokenShards::prepare`] reads the text once, tokenises it on every core and writes the ids to
//! flat files; from then on a run only maps those files into memory. [`TokenWindows`] cuts the
//! stream of ids into windows of the context length, and [`Batches`] deals the windows out in an
//! order that a seed decides.
//!
//! ```no_run
//! use datasets::{Batches, PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
//! use std::sync::Arc;
//!
//! # fn main() -> datasets::Result<()> {
//! let tokenizer = Tokenizer::from_folder("assets/phi-tiny")?;
//! let shards = TokenShards::prepare(&PrepareOptions {
//!     name: "train",
//!     sources: vec!["assets/text/pd-train.json.gz".into()],
//!     split: Split::All,
//!     tokenizer: &tokenizer,
//!     cache: "cache".into(),
//! })?;
//! let windows = TokenWindows::new(Arc::new(shards), 512)?;
//! let batch = Batches::new(windows, 16, 0).batch(0)?;
//! assert_eq!(batch.ids.len(), 16 * 512);
//! # Ok(())
//! # }
//! ```
//!
//! # Why shards of our own
//!
//! `burn-dataset` offers three ways to a corpus. Its SQLite data set holds one serialised row an
//! item: a query and a decode for what is here a copy of a few kilobytes, a C library to build, and
//! a file several times the size of the ids. Its Hugging Face loader starts a Python interpreter and
//! needs the network. Its in-memory data set needs the corpus in memory. Pre-training text is a
//! single long sequence of small integers, and the oldest form for it serves best: little-endian
//! integers in flat files, mapped into memory. Opening 100 GB costs nothing, several processes share
//! one copy in the page cache, any window is one slice, and a few lines in any language read them.
//! What `burn-dataset` is good at is kept: [`TokenWindows`] is a [`burn_dataset::Dataset`], so its
//! samplers, mappers and loaders work on it.
//!
//! # Why a batch is a function of (seed, step)
//!
//! A data loader is a process: workers, queues, an iterator in some state. To resume a run exactly,
//! that state must be saved, and most loaders cannot (Burn's `DataLoader` can start only at an epoch).
//! Here [`Batches::batch`] computes batch number `step` from the seed and the step alone, so the
//! position in the data is the step counter which a checkpoint holds anyway. Nothing has to be
//! replayed on resuming, several processes can take every n-th batch without talking to each other,
//! and a batch that made the loss jump can be looked at later. The shuffle that this needs is a keyed
//! permutation of the window numbers, which is evaluated in constant time and memory (see
//! `permutation.rs`) where a shuffled index would take 8 bytes a window and a pass over it an epoch.
//! A batch is a copy of a few windows out of the page cache, nothing beside a training step; that is
//! why there is no prefetching thread.
//!
//! # What is not here
//!
//! No sampling weights between sources, no packing that respects document bounds, no streaming over
//! the network: MOHAWK trains on one corpus, packed with end-of-text between documents.

#![deny(missing_docs)]

mod error;
#[cfg(test)]
mod fixtures;
mod permutation;
mod prepare;
mod shards;
mod source;
mod split;
mod tokenizer;
mod windows;

pub use error::{DataError, Result};
pub use prepare::PrepareOptions;
pub use shards::{Manifest, TokenShards};
pub use source::{Documents, SourceFile, source_files};
pub use split::Split;
pub use tokenizer::{END_OF_TEXT, TokenStream, Tokenizer};
pub use windows::{Batch, Batches, TokenWindows, Window};
