//! Windows of the context length.

use std::sync::Arc;

use burn_dataset::Dataset;

use crate::batches::Batch;
use crate::error::{DataError, Result};
use crate::permutation::Permutation;
use crate::shards::TokenShards;

/// A corpus cut into windows. The inputs of window `i` are the `context` tokens from token
/// `i * context` on; the label of each input is the token that follows it.
///
/// Windows have no input in common; the last label of a window is the first input of the next. Windows ignore the
/// bounds of documents: a window may begin in one document and end in another. There is an end-of-text token between
/// documents, by which [`Batches`](crate::Batches::by_documents) can separate them. A window consists of `context + 1`
/// tokens; an incomplete window at the end is dropped.
///
/// ```
/// use datasets::{PrepareOptions, TokenShards, TokenWindows, Tokenizer};
/// use std::sync::Arc;
///
/// # fn main() -> datasets::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let text = folder.path().join("text.txt");
/// # std::fs::write(&text, "It was the best of times").unwrap();
/// # let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
/// # let options = PrepareOptions::new("example", [text], &tokenizer, folder.path());
/// let shards = TokenShards::prepare(&options)?;
/// // The six ids of "It was the best of times" and end-of-text.
/// assert_eq!(shards.tokens(), 7);
/// let windows = TokenWindows::new(Arc::new(shards), 3)?;
/// assert_eq!(windows.count(), 2);
/// assert_eq!(windows.window(0)?.ids, [1931, 355, 260, 1283]);
/// assert_eq!(windows.window(1)?.ids, [1283, 269, 1754, 0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TokenWindows {
    shards: Arc<TokenShards>,
    context: usize,
    count: u64,
}

/// The `context + 1` token ids of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// `context + 1` ids: the inputs are all but the last, the labels all but the first.
    pub ids: Vec<i32>,
}

impl TokenWindows {
    /// Cuts `shards` into windows of `context` inputs.
    ///
    /// # Errors
    ///
    /// [`DataError::Zero`] if `context` is 0, [`DataError::TooShort`] if the corpus has fewer than
    /// `context + 1` tokens.
    pub fn new(shards: Arc<TokenShards>, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(DataError::Zero { what: "context" });
        }
        let tokens = shards.tokens();
        let count = tokens.saturating_sub(1) / context as u64;
        if count == 0 {
            return Err(DataError::TooShort { tokens, context });
        }
        Ok(Self {
            shards,
            context,
            count,
        })
    }

    /// The number of windows, at least one.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of inputs in a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The corpus that was cut.
    pub fn shards(&self) -> &TokenShards {
        &self.shards
    }

    /// Window `index`.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] if `index` is [`count`](Self::count) or more,
    /// [`DataError::DamagedShards`] if the shards hold an id outside the vocabulary.
    pub fn window(&self, index: u64) -> Result<Window> {
        let mut ids = Vec::new();
        self.read(index, &mut ids)?;
        Ok(Window {
            ids: ids.into_iter().map(|id| id as i32).collect(),
        })
    }

    /// All windows in order, in batches of `batch_size`, for evaluation. Each window comes once, so
    /// the last batch may be smaller.
    ///
    /// # Errors
    ///
    /// An item is [`DataError::DamagedShards`] if the shards hold an id outside the vocabulary. If
    /// `batch_size` is 0, the only item is [`DataError::Zero`].
    pub fn sequential(&self, batch_size: usize) -> impl Iterator<Item = Result<Batch>> {
        (0..self.count)
            .step_by(batch_size.max(1))
            .take(if batch_size == 0 { 1 } else { usize::MAX })
            .map(move |first| {
                let end = first.saturating_add(batch_size as u64).min(self.count);
                self.batch(first..end)
            })
    }

    /// The batch whose rows are the windows `indices`.
    fn batch(&self, indices: impl Iterator<Item = u64>) -> Result<Batch> {
        Batch::of(self.context, None, indices, |index, ids| {
            self.read(index, ids)
        })
    }

    /// The index of the window at place `number` of the endless sequence of [`Batches`](crate::Batches).
    pub(crate) fn nth(&self, number: u128, seed: u64) -> u64 {
        let count = u128::from(self.count);
        let (epoch, place) = ((number / count) as u64, (number % count) as u64);
        Permutation::new(self.count, seed, epoch).at(place)
    }

    /// Reads the `context + 1` ids of window `index`. Each fits an `i32`, since `Tokenizer` refuses
    /// larger vocabularies.
    pub(crate) fn read(&self, index: u64, ids: &mut Vec<u32>) -> Result<()> {
        // A product too large for u64 is after the end of any corpus.
        let start = index.saturating_mul(self.context as u64);
        self.shards.read(start, self.context + 1, ids)
    }
}

impl Dataset<Window> for TokenWindows {
    /// Window `index`; `None` for any error of [`TokenWindows::window`], since this trait has no
    /// errors.
    fn get(&self, index: usize) -> Option<Window> {
        self.window(index as u64).ok()
    }

    fn len(&self) -> usize {
        self.count as usize
    }
}

#[cfg(test)]
mod tests;
