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
    /// For each of `ids` the token that follows it: `batch * context` ids, row by row. Below 0 where documents are
    /// apart and this one ends its document: what follows does not follow from it.
    pub labels: Vec<i32>,
    /// Where documents are apart, for each of `ids` the place in its row of its document's first token:
    /// `batch * context` numbers from 0 on, which never decrease along a row.
    pub starts: Option<Vec<i32>>,
    /// The number of windows, which are the rows.
    pub batch: usize,
    /// The number of inputs in each window.
    pub context: usize,
}

impl Batch {
    /// The batch whose rows have these `numbers`, which `read` replaces by the `context + 1` ids of a window.
    ///
    /// Documents are apart if there is the id that ends each.
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

/// Adds to `starts` the place of the first token of the document of each of `inputs`, and takes the labels of the
/// tokens that end a document. A window that begins inside a document begins a document.
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
    /// Of text that is tokenised.
    Whole(TokenWindows),
    /// Of text that is tokenised as it is read.
    Incoming(IncomingWindows),
    /// Of text that is made as it is read.
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

    /// The windows with which the text begins: all of them or, of text that is tokenised as it is read, those of its
    /// first file, for which this waits. `None` of text that is made, which has no beginning.
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

    /// Batches of `batch_size` windows of several sources, each of which has its weight: of every thousand rows in a
    /// sequence, from the first on, a source has its share, rounded to whole rows and at least one, and which they are
    /// follows from `seed`. Each source is dealt out in its own order, as if it were alone, and begins
    /// anew when it is at its end, so that a small source with a large weight is seen more often than a large one.
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

    /// The same batches with documents apart: they say where the documents of each row begin, and have no labels across
    /// their bounds. `end_of_text` is the id that ends every document, which no text has
    /// ([`Tokenizer::end_of_text`](crate::Tokenizer::end_of_text)): it is the last token of its document.
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
    /// [`DataError::Zero`] if the batch size is 0, [`DataError::DamagedShard`] and [`DataError::DamagedShards`] if
    /// the shards are damaged; for text that is tokenised as it is read also all errors of that.
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
