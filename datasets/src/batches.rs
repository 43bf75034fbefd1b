//! Batches of windows, in an order that follows from a seed.

use crate::error::{DataError, Result};
use crate::incoming::IncomingWindows;
use crate::mixture::Mixture;
use crate::probes::RecallText;
use crate::windows::TokenWindows;

/// Inputs and labels, in the layout of two tensors `[batch, context]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `batch * context` token ids, row by row.
    pub ids: Vec<i32>,
    /// For each of `ids`, the token that follows it: `batch * context` ids, row by row. If documents are separate, the
    /// label of a token that ends its document is negative, because the next token belongs to another document.
    pub labels: Vec<i32>,
    /// If documents are separate: for each of `ids`, the index in its row of the first token of its document,
    /// `batch * context` numbers. They never decrease along a row. Otherwise `None`.
    pub starts: Option<Vec<i32>>,
    /// The number of windows, which are the rows.
    pub batch: usize,
    /// The number of inputs in each window.
    pub context: usize,
}

impl Batch {
    /// The batch of the rows with these `numbers`. `read` replaces its buffer by the `context + 1` ids of the window of
    /// a row.
    ///
    /// Documents are separate if `end_of_text`, the id that ends each document, is given.
    pub(crate) fn of<N>(
        context: usize,
        end_of_text: Option<u32>,
        numbers: impl Iterator<Item = N>,
        read: impl Fn(N, &mut Vec<u32>) -> Result<()>,
    ) -> Result<Self> {
        let (mut ids, mut labels, mut batch) = (Vec::new(), Vec::new(), 0);
        let mut starts = end_of_text.map(|_| Vec::new());
        let mut window = Vec::new();
        for number in numbers {
            read(number, &mut window)?;
            ids.extend(window.iter().take(context).map(|&id| id as i32));
            labels.extend(window.iter().skip(1).map(|&id| id as i32));
            if let (Some(starts), Some(end)) = (&mut starts, end_of_text) {
                let first = ids.len() - context;
                apart(&window[..context], end, &mut labels[first..], starts);
            }
            batch += 1;
        }
        if batch == 0 {
            return Err(DataError::Zero { what: "batch size" });
        }
        Ok(Self {
            ids,
            labels,
            starts,
            batch,
            context,
        })
    }
}

/// Adds to `starts`, for each of `inputs`, the index of the first token of its document, and removes the labels of the
/// tokens that end a document. If a window begins inside a document, its first token counts as the start of a document.
pub(crate) fn apart(inputs: &[u32], end_of_text: u32, labels: &mut [i32], starts: &mut Vec<i32>) {
    let mut start = 0;
    for (place, (&id, label)) in inputs.iter().zip(labels).enumerate() {
        starts.push(start);
        if id == end_of_text {
            *label = NO_LABEL;
            start = place as i32 + 1;
        }
    }
}

/// The label of a token that ends its document.
const NO_LABEL: i32 = -1;

/// The windows of one source of text.
#[derive(Debug, Clone)]
pub enum Windows {
    /// Windows of text that is already tokenised.
    Whole(TokenWindows),
    /// Windows of text that is tokenised while it is read.
    Incoming(IncomingWindows),
    /// Windows of text that is generated while it is read.
    Made(RecallText),
}

impl From<RecallText> for Windows {
    fn from(text: RecallText) -> Self {
        Self::Made(text)
    }
}

impl From<TokenWindows> for Windows {
    fn from(windows: TokenWindows) -> Self {
        Self::Whole(windows)
    }
}

impl From<IncomingWindows> for Windows {
    fn from(windows: IncomingWindows) -> Self {
        Self::Incoming(windows)
    }
}

impl Windows {
    /// The number of inputs in a window.
    pub fn context(&self) -> usize {
        match self {
            Self::Whole(windows) => windows.context(),
            Self::Incoming(windows) => windows.context(),
            Self::Made(text) => text.context(),
        }
    }

    /// The first windows of the text: for tokenised text, all windows; for text that is tokenised while it is read,
    /// those of its first file, for which this method waits; for generated text, `None`, because it has no beginning.
    ///
    /// # Errors
    ///
    /// As [`IncomingWindows::first`].
    pub fn first(&self) -> Result<Option<TokenWindows>> {
        match self {
            Self::Whole(windows) => Ok(Some(windows.clone())),
            Self::Incoming(windows) => windows.first().map(Some),
            Self::Made(_) => Ok(None),
        }
    }

    /// Reads the window at place `number` of the endless sequence of this source.
    fn read_nth(&self, number: u128, seed: u64, ids: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Whole(windows) => windows.read(windows.nth(number, seed), ids),
            Self::Incoming(windows) => windows.read_nth(number, seed, ids),
            Self::Made(text) => text.read(number, seed, ids),
        }
    }
}

/// Batches of windows for training, in an order that follows from a seed; see
/// [`batch`](Self::batch).
#[derive(Debug, Clone)]
pub struct Batches {
    sources: Vec<Windows>,
    mixture: Mixture,
    batch_size: usize,
    seed: u64,
    /// The id that ends a document, where documents are apart.
    end_of_text: Option<u32>,
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
    /// use datasets::{Batches, PrepareOptions, TokenShards, TokenWindows, Tokenizer};
    /// use std::sync::Arc;
    ///
    /// # fn main() -> datasets::Result<()> {
    /// # let cache = tempfile::tempdir().unwrap();
    /// # let text = "../assets/text/pd-validation.json.gz";
    /// # let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
    /// # let options = PrepareOptions::new("validation", [text], &tokenizer, cache.path());
    /// # let shards = TokenShards::prepare(&options)?;
    /// let windows = TokenWindows::new(Arc::new(shards), 256)?;
    /// let (small, large) = (Batches::new(windows.clone(), 4, 42), Batches::new(windows, 8, 42));
    /// // Steps 0 and 1 of the small batches are step 0 of the large ones.
    /// assert_eq!([small.batch(0)?.ids, small.batch(1)?.ids].concat(), large.batch(0)?.ids);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(windows: impl Into<Windows>, batch_size: usize, seed: u64) -> Self {
        Self {
            sources: vec![windows.into()],
            mixture: Mixture::of_one(),
            batch_size,
            seed,
            end_of_text: None,
        }
    }

    /// Batches of `batch_size` windows from several sources with weights. Each block of a thousand consecutive rows
    /// contains rows of a source in proportion to its weight, rounded to whole rows, and at least one; `seed`
    /// determines which rows these are. Each source is read in its own order, as if it were alone, and starts again at
    /// its end. So a small source with a large weight is seen more often than a large one.
    ///
    /// # Errors
    ///
    /// [`DataError::Weights`] unless each weight is a number above 0 and there are 1 to 1,000;
    /// [`DataError::Contexts`] if the windows have different lengths.
    pub fn mixed(sources: Vec<(Windows, f64)>, batch_size: usize, seed: u64) -> Result<Self> {
        let (sources, weights): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
        let mixture = Mixture::new(&weights)?;
        let contexts: Vec<_> = sources.iter().map(Windows::context).collect();
        if contexts.iter().any(|context| *context != contexts[0]) {
            return Err(DataError::Contexts { contexts });
        }
        Ok(Self {
            sources,
            mixture,
            batch_size,
            seed,
            end_of_text: None,
        })
    }

    /// The same batches with separate documents: the batches say where the documents of each row begin, and have no
    /// labels that cross from one document to the next. `end_of_text` is the id that ends every document and that
    /// occurs in no text ([`Tokenizer::end_of_text`](crate::Tokenizer::end_of_text)). It counts as the last token of
    /// its document.
    ///
    /// ```
    /// # use datasets::{Batches, PrepareOptions, TokenShards, TokenWindows, Tokenizer};
    /// # use std::sync::Arc;
    /// # fn main() -> datasets::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let text = folder.path().join("text.jsonl");
    /// # std::fs::write(&text, "{\"text\": \"It was\"}\n{\"text\": \"the best of times\"}\n").unwrap();
    /// # let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
    /// # let options = PrepareOptions::new("example", [text], &tokenizer, folder.path());
    /// # let shards = TokenShards::prepare(&options)?;
    /// // "It was", end-of-text, "the best of times", end-of-text.
    /// let tokens = shards.tokens() as usize;
    /// let windows = TokenWindows::new(Arc::new(shards), tokens - 1)?;
    /// let end = tokenizer.end_of_text().unwrap();
    /// let batch = Batches::new(windows, 1, 42).by_documents(end).batch(0)?;
    /// let second = batch.ids.iter().position(|id| *id == end as i32).unwrap() + 1;
    /// let starts = batch.starts.unwrap();
    /// assert!(starts[..second].iter().all(|start| *start == 0));
    /// assert!(starts[second..].iter().all(|start| *start == second as i32));
    /// assert!(batch.labels[second - 1] < 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn by_documents(self, end_of_text: u32) -> Self {
        Self {
            end_of_text: Some(end_of_text),
            ..self
        }
    }

    /// Batch number `step`, from 0: a pure function of the seed and the step.
    ///
    /// An epoch of a source contains each of its windows once, in an order that follows from the seed and the number
    /// of the epoch. (The windows of [`IncomingWindows`] are in the order of their files, and shuffled in each file.)
    /// Epochs follow one another without a gap: a batch may take its last rows from the
    /// next epoch, and no window is left out. So row `j` of batch `step` is number
    /// `step * batch_size + j` of one endless sequence of windows, which does not depend on the
    /// batch size: four batches of 8 windows have the same text in the same order as one of 32.
    ///
    /// # Errors
    ///
    /// [`DataError::Zero`] if the batch size is 0, [`DataError::DamagedShard`] and [`DataError::DamagedShards`] if the
    /// shards are damaged. For text that is tokenised while it is read, also all errors of fetching and tokenising.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let size = self.batch_size as u128;
        let first = u128::from(step) * size;
        Batch::of(
            self.sources[0].context(),
            self.end_of_text,
            first..first + size,
            |number, ids| {
                let (source, place) = self.mixture.at(number, self.seed);
                self.sources[source].read_nth(place, self.seed, ids)
            },
        )
    }
}
