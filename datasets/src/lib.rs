//! Text in, windows of tokens out.
//!
//! A corpus passes through this crate in one direction:
//!
//! ```text
//! files -> documents -> token ids -> shards on disk -> windows -> batches
//! source   split        tokenizer    prepare, shards   windows    windows + permutation
//! ```
//!
//! [`TokenShards::prepare`] reads the text once, tokenises it on all cores and writes the ids to
//! flat files. Every later run only opens those files. [`TokenWindows`] cuts the sequence
//! of ids into windows of the context length, and [`Batches`] takes the windows in an order that
//! follows from a seed.
//!
//! ```
//! use datasets::{Batches, PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
//! use std::sync::Arc;
//!
//! # fn main() -> datasets::Result<()> {
//! # let cache = tempfile::tempdir().unwrap();
//! let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
//! let shards = TokenShards::prepare(&PrepareOptions {
//!     name: "validation",
//!     sources: vec!["../assets/text/pd-validation.json.gz".into()],
//!     split: Split::All,
//!     tokenizer: &tokenizer,
//!     cache: cache.path().into(),
//!     skip_bad_lines: 0,
//! })?;
//! let windows = TokenWindows::new(Arc::new(shards), 512)?;
//! let batch = Batches::new(windows, 16, 42).batch(0)?;
//! assert_eq!((batch.ids.len(), batch.labels.len()), (16 * 512, 16 * 512));
//! # Ok(())
//! # }
//! ```
//!
//! # Why flat files of token ids
//!
//! `burn-dataset` offers three ways to store a corpus. Its SQLite data set stores one serialised row
//! for each item: it costs a query and a decode where this crate copies a few kilobytes, it needs a C
//! library, and the file is several times as large as the ids. Its Hugging Face loader starts a
//! Python interpreter and needs the network. Its in-memory data set needs memory for the whole corpus.
//! A pre-training corpus is a single long sequence of small integers, and the simplest format fits
//! it best: little-endian integers in flat files, read by position. Opening them reads each once, to
//! compare its checksum; several processes share one copy in the page cache, each window is one read, and
//! a few lines of any language read the files. They are not mapped into memory: a file that another
//! program cuts while it is mapped ends the process with a signal, and a read is an error that names it. [`TokenWindows`] implements [`burn_dataset::Dataset`],
//! so the samplers, mappers and loaders of `burn-dataset` accept it.
//!
//! # Why a batch is a function of (seed, step)
//!
//! A usual data loader has state: workers, queues, an iterator. To resume a run exactly, that state
//! must be saved, and most loaders cannot save it (Burn's `DataLoader` starts at an epoch only).
//! [`Batches::batch`] computes batch number `step` from the seed and the step alone, so the position
//! in the data is the step counter, which a checkpoint holds anyway. Resuming replays nothing,
//! several processes can each take every n-th batch without communication, and a batch at which the
//! loss jumped can be read again later. The shuffle behind it is a keyed permutation of the window
//! numbers, computed entry by entry in constant time and memory (`permutation.rs`); a stored shuffle
//! would take 8 bytes for each window and one pass over them for each epoch.
//!
//! This crate starts no thread for prefetching. A batch is a copy of a few windows out of the page
//! cache, and since it depends on the step alone, a training loop can compute any later batch on
//! another thread while a step runs; the crate `train` does so.
//!
//! # What this crate does not do
//!
//! It has no sampling weights between sources, no packing that respects the bounds of documents and
//! no streaming over the network: MOHAWK trains on one corpus, whose documents follow one another
//! with end-of-text between them.

#![deny(missing_docs)]

mod error;
#[cfg(test)]
mod fixtures;
mod panics;
mod permutation;
mod prepare;
mod shards;
mod source;
mod split;
mod tokenizer;
mod windows;

pub use error::{DataError, Result};
pub use panics::silence_caught_panics;
pub use prepare::PrepareOptions;
pub use shards::{Manifest, TokenShards};
pub use source::{
    Documents, ParquetRows, SourceFile, open_text, parquet_rows, source_files,
    without_byte_order_mark,
};
pub use split::Split;
pub use tokenizer::{END_OF_TEXT, TokenStream, Tokenizer};
pub use windows::{Batch, Batches, TokenWindows, Window};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;
