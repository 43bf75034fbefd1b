//! Windows of the context length, and the batches dealt from them.

use std::sync::Arc;

use burn_dataset::Dataset;

use crate::permutation::Permutation;
use crate::{DataError, Result, TokenShards};

/// A corpus cut into windows: number `i` covers the `context` inputs from token `i * context` on, and
/// for each of them the next token as its label.
///
/// Windows share no input; the last label of one is the first input of the next. Documents are not
/// looked at: a window may begin in one and end in another, with end-of-text between. What is left at
/// the end and does not fill a window (which takes `context + 1` tokens) is dropped.
#[derive(Debug, Clone)]
pub struct TokenWindows {
    shards: Arc<TokenShards>,
    context: usize,
    count: u64,
}

/// The `context + 1` token ids of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The inputs are all but the last, the labels all but the first.
    pub ids: Vec<i32>,
}

/// Inputs and labels, ready to become two tensors `[batch, context]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `batch * context` token ids, row by row.
    pub ids: Vec<i32>,
    /// For each of `ids` the token that follows it.
    pub labels: Vec<i32>,
    /// How many windows.
    pub batch: usize,
    /// How many inputs in each.
    pub context: usize,
}

impl TokenWindows {
    /// Cuts `shards` into windows of `context` inputs.
    ///
    /// # Errors
    ///
    /// `context` is 0, or the corpus has fewer than `context + 1` tokens.
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

    /// How many windows there are: at least one.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many inputs a window has.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The corpus.
    pub fn shards(&self) -> &TokenShards {
        &self.shards
    }

    /// Window `index`.
    ///
    /// # Errors
    ///
    /// There is no such window; the shards are damaged.
    pub fn window(&self, index: u64) -> Result<Window> {
        let mut ids = Vec::new();
        self.read(index, &mut ids)?;
        Ok(Window {
            ids: ids.into_iter().map(|id| id as i32).collect(),
        })
    }

    /// All windows in order, `batch_size` at a time, for evaluation: every window comes once, so the
    /// last batch may be smaller.
    ///
    /// A `batch_size` of 0 gives one error.
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

    /// The ids of window `index` fit an `i32`: `Tokenizer` sees to it.
    fn read(&self, index: u64, ids: &mut Vec<u32>) -> Result<()> {
        // A number too large for u64 is behind the end of any corpus.
        let start = index.saturating_mul(self.context as u64);
        self.shards.read(start, self.context + 1, ids)
    }
}

impl Dataset<Window> for TokenWindows {
    /// Window `index`; `None` also where [`TokenWindows::window`] has an error other than there being
    /// no such window, for this trait knows none.
    fn get(&self, index: usize) -> Option<Window> {
        self.window(index as u64).ok()
    }

    fn len(&self) -> usize {
        self.count as usize
    }
}

/// Batches in an order that a seed decides; see [`batch`](Self::batch).
#[derive(Debug, Clone)]
pub struct Batches {
    windows: TokenWindows,
    batch_size: usize,
    seed: u64,
}

impl Batches {
    /// Batches of `batch_size` windows.
    pub fn new(windows: TokenWindows, batch_size: usize, seed: u64) -> Self {
        Self {
            windows,
            batch_size,
            seed,
        }
    }

    /// Batch number `step`: a pure function of the seed and the step.
    ///
    /// An epoch deals out every window once, in an order that belongs to the seed and the
    /// epoch's number; epochs follow one another without a gap, so a batch may take its
    /// last rows from the next one and no window is ever left out. Row `j` of batch `step` is thus
    /// number `step * batch_size + j` of one endless row of windows, which does not depend on the
    /// batch size: the same text is seen in the same order by 4 x 8 windows as by 32 at once.
    ///
    /// # Errors
    ///
    /// The batch size is 0; the shards are damaged.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let size = self.batch_size as u128;
        let first = u128::from(step) * size;
        self.windows
            .batch((first..first + size).map(|number| self.nth_window(number)))
    }

    /// The window that is number `number` of all that are ever dealt out.
    fn nth_window(&self, number: u128) -> u64 {
        let count = self.windows.count;
        let epoch = (number / u128::from(count)) as u64;
        let place = (number % u128::from(count)) as u64;
        Permutation::new(count, self.seed, epoch).at(place)
    }

    /// The windows that are dealt out.
    pub fn windows(&self) -> &TokenWindows {
        &self.windows
    }
}

#[cfg(test)]
mod tests;
