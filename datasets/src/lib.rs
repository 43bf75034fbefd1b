//! Text in, windows of tokens out.
//!
//! A corpus passes through this crate in one direction:
//!
//! ```text
//! files -> documents -> token ids -> shards on disk -> windows -> batches
//! source   split        tokenizer    prepare, shards   windows    mixture, permutation
//! ```
//!
//! [`TokenShards::prepare`] reads the text once, tokenises it on all cores and writes the ids to
//! flat files. Every later run only opens those files. [`TokenWindows`] cuts the sequence
//! of ids into windows of the context length, and [`Batches`] takes the windows in an order that
//! follows from a seed. [`IncomingShards`] does the same with text that is fetched and tokenised while batches are read.
//!
//! ```
//! use datasets::{Batches, PrepareOptions, TokenShards, TokenWindows, Tokenizer};
//! use std::sync::Arc;
//!
//! # fn main() -> datasets::Result<()> {
//! # let cache = tempfile::tempdir().unwrap();
//! # let cache = cache.path();
//! let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
//! let text = "../assets/text/pd-validation.json.gz";
//! let options = PrepareOptions::new("validation", [text], &tokenizer, cache);
//! let shards = TokenShards::prepare(&options)?;
//! let windows = TokenWindows::new(Arc::new(shards), 512)?;
//! let batch = Batches::new(windows, 16, 42).batch(0)?;
//! assert_eq!((batch.ids.len(), batch.labels.len()), (16 * 512, 16 * 512));
//! # Ok(())
//! # }
//! ```
//!
//! # Why flat files of token ids
//!
//! `burn-dataset` offers three ways to store a corpus. Its SQLite data set stores one serialised row for each item: it
//! costs a query and a decode where this crate copies a few kilobytes, it needs a C library, and the file is several
//! times as large as the ids. Its Hugging Face loader starts a Python interpreter and needs the network. Its in-memory
//! data set needs memory for the whole corpus. A pre-training corpus is a single long sequence of small integers, and
//! the simplest format fits it best: little-endian integers in flat files, read by position. To verify its checksum,
//! each file is read once, when it is opened or later by another thread. Several processes share one copy in the page
//! cache, each window is one read, and a few lines of any language can read the files. The files are not mapped into
//! memory: if another program truncates a mapped file, a signal ends the process, while a normal read returns an error
//! that names the file. [`TokenWindows`] implements [`burn_dataset::Dataset`], so the samplers, mappers and loaders of
//! `burn-dataset` accept it.
//!
//! # Why a batch is a function of (seed, step)
//!
//! A usual data loader has state: workers, queues, an iterator. To resume a run exactly, that state must be saved, and
//! most loaders cannot save it (Burn's `DataLoader` starts at an epoch only). [`Batches::batch`] computes batch number
//! `step` from the seed and the step alone, so the position in the data is the step counter, which a checkpoint
//! contains anyway. A resumed run need not read earlier batches again, several processes can each take every n-th batch
//! without communication, and a batch at which the loss jumped can be read again later. The shuffle behind it is a
//! keyed permutation of the window numbers, computed entry by entry in constant time and memory (`permutation.rs`); a
//! stored shuffle would take 8 bytes for each window and one pass over them for each epoch.
//!
//! This crate starts no thread for prefetching. A batch is a copy of a few windows out of the page
//! cache, and since it depends on the step alone, a training loop can compute any later batch on
//! another thread while a step runs; the crate `train` does so.
//!
//! # Mixtures, and text that is not all there
//!
//! The order of one corpus is a permutation of all its windows, so the number of windows must be known, which needs the
//! whole text. A mixture of weighted sources does not need these numbers ([`Batches::mixed`]): every thousand rows
//! contain a fixed number of rows of each source, a permutation of the thousand says which rows these are, and so the
//! number of earlier rows of a source is a simple product. Text that is tokenised while it is read has a different
//! order than the same text in local files ([`IncomingWindows`]): its files follow one another, and only the windows
//! within each file are shuffled. Both orders are functions of seed and step.
//!
//! # Memory
//!
//! Tokenising needs, for each core, two blocks of 2 MiB of text (one is read while the other is tokenised), their ids
//! with 4 bytes each, and a few megabytes for the tokenizer. In addition it needs: a part of 1 MiB of a JSON line or of
//! plain text; a whole row of Parquet and a decompressed page of it; a whole element of a JSON array, up to 256 MiB;
//! the window of a zstd file; and, if duplicates are dropped, up to 60 bytes for each different document. The memory
//! depends neither on the size of the corpus nor on the size of a document in JSON lines. Reading batches needs the
//! memory of one batch.
//!
//! # What this crate does not do
//!
//! It does not align windows with documents: the documents follow one another, with an end-of-text token after each,
//! and [`Batches::by_documents`] says where each document begins.

#![deny(missing_docs)]

mod batches;
mod error;
#[cfg(test)]
mod fixtures;
mod incoming;
mod mixture;
mod panics;
mod permutation;
mod prepare;
pub mod probes;
mod shards;
mod source;
mod split;
mod task_names;
mod tokenizer;
mod windows;

pub use batches::{Batch, Batches, Windows};
pub use error::{DataError, Result};
pub use incoming::{IncomingShards, IncomingWindows};
pub use panics::silence_caught_panics;
pub use prepare::{PrepareOptions, Share};
pub use shards::{Manifest, TokenShards};
pub use source::{
    Documents, Fetch, ParquetRows, Remote, Source, SourceFile, TEXT, is_pattern,
    keep_standard_input, open_text, parquet_rows, source_files, without_byte_order_mark,
};
pub use split::Split;
pub use task_names::TASK_NAMES;
pub use tokenizer::{END_OF_TEXT, TokenStream, Tokenizer};
pub use windows::{TokenWindows, Window};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;
