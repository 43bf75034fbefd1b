//! Windows of the context length, and batches of them.

use std::sync::Arc;

use burn_dataset::Dataset;

use crate::error::{DataError, Result};
use crate::permutation::Permutation;
use crate::shards::TokenShards;

/// A corpus cut into windows. The inputs of window `i` are the `context` tokens from token
/// `i * context` on; the label of each input is the token that follows it.
///
/// Windows share no input; the last label of a window is the first input of the next. The bounds of
/// documents play no part: a window may begin in one document and end in another, with end-of-text
/// between them. A window takes `context + 1` tokens, and an incomplete one at the end is dropped.
///
/// ```
/// use datasets::{PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
/// use std::sync::Arc;
///
/// # fn main() -> datasets::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let text = folder.path().join("text.txt");
/// # std::fs::write(&text, "It was the best of times").unwrap();
/// # let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
/// # let shards = TokenShards::prepare(&PrepareOptions {
/// #     name: "example",
/// #     sources: vec![text],
/// #     split: Split::All,
/// #     tokenizer: &tokenizer,
/// #     cache: folder.path().into(),
/// #     skip_bad_lines: 0,
/// # })?;
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

/// Inputs and labels, in the layout of two tensors `[batch, context]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `batch * context` token ids, row by row.
    pub ids: Vec<i32>,
    /// For each of `ids` the token that follows it: `batch * context` ids, row by row.
    pub labels: Vec<i32>,
    /// The number of windows, which are the rows.
    pub batch: usize,
    /// The number of inputs in each window.
    pub context: usize,
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
        let context = self.context;
        let (mut ids, mut labels, mut batch) = (Vec::new(), Vec::new(), 0);
        let mut window = Vec::new();
        for index in indices {
            self.read(index, &mut window)?;
            ids.extend(window.iter().take(context).map(|&id| id as i32));
            labels.extend(window.iter().skip(1).map(|&id| id as i32));
            batch += 1;
        }
        if batch == 0 {
            return Err(DataError::Zero { what: "batch size" });
        }
        Ok(Batch {
            ids,
            labels,
            batch,
            context,
        })
    }

    /// Reads the `context + 1` ids of window `index`. Each fits an `i32`, since `Tokenizer` refuses
    /// larger vocabularies.
    fn read(&self, index: u64, ids: &mut Vec<u32>) -> Result<()> {
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

/// Batches of windows for training, in an order that follows from a seed; see
/// [`batch`](Self::batch).
#[derive(Debug, Clone)]
pub struct Batches {
    windows: TokenWindows,
    batch_size: usize,
    seed: u64,
}

impl Batches {
    /// Batches of `batch_size` of the `windows`, each window once in an epoch, in the order of
    /// `seed`.
    ///
    /// This only stores the arguments: a `batch_size` of 0 becomes an error in
    /// [`batch`](Self::batch). Two values with equal corpus, context, batch size and seed give equal
    /// batches, in every process, on every machine and in every version of this crate.
    ///
    /// ```
    /// use datasets::{Batches, PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
    /// use std::sync::Arc;
    ///
    /// # fn main() -> datasets::Result<()> {
    /// # let cache = tempfile::tempdir().unwrap();
    /// # let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
    /// # let shards = TokenShards::prepare(&PrepareOptions {
    /// #     name: "validation",
    /// #     sources: vec!["../assets/text/pd-validation.json.gz".into()],
    /// #     split: Split::All,
    /// #     tokenizer: &tokenizer,
    /// #     cache: cache.path().into(),
    /// #     skip_bad_lines: 0,
    /// # })?;
    /// let windows = TokenWindows::new(Arc::new(shards), 256)?;
    /// let (small, large) = (Batches::new(windows.clone(), 4, 42), Batches::new(windows, 8, 42));
    /// // Steps 0 and 1 of the small batches are step 0 of the large ones.
    /// assert_eq!([small.batch(0)?.ids, small.batch(1)?.ids].concat(), large.batch(0)?.ids);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(windows: TokenWindows, batch_size: usize, seed: u64) -> Self {
        Self {
            windows,
            batch_size,
            seed,
        }
    }

    /// Batch number `step`, from 0: a pure function of the seed and the step.
    ///
    /// An epoch contains each window once, in an order that follows from the seed and the number of
    /// the epoch. Epochs follow one another without a gap: a batch may take its last rows from the
    /// next epoch, and no window is left out. So row `j` of batch `step` is number
    /// `step * batch_size + j` of one endless sequence of windows, which does not depend on the
    /// batch size: four batches of 8 windows have the same text in the same order as one of 32.
    ///
    /// # Errors
    ///
    /// [`DataError::Zero`] if the batch size is 0, [`DataError::DamagedShards`] if the shards hold an
    /// id outside the vocabulary.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let size = self.batch_size as u128;
        let first = u128::from(step) * size;
        self.windows
            .batch((first..first + size).map(|number| self.nth_window(number)))
    }

    /// The index of the window at place `number` of the endless sequence.
    fn nth_window(&self, number: u128) -> u64 {
        let count = self.windows.count;
        let epoch = (number / u128::from(count)) as u64;
        let place = (number % u128::from(count)) as u64;
        Permutation::new(count, self.seed, epoch).at(place)
    }

    /// The windows that the batches are made of.
    pub fn windows(&self) -> &TokenWindows {
        &self.windows
    }
}

#[cfg(test)]
mod tests;
