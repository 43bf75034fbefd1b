//! Reads documents in blocks: each has work for all cores, and the memory stays bounded.

use super::scratch::State;
use super::seen::Seen;
use crate::error::{DataError, Result};
use crate::prepare::PrepareOptions;
use crate::source::{End, Input, Parts, Position};
use crate::split::{DocumentHash, Split};
use crate::tokenizer::Tokenizer;

/// A long document is read in parts of this many bytes, so that there is a good place to cut
/// near the end of each. It does not depend on the number of cores, as blocks do, and so neither do the ids.
const PART_BYTES: usize = 1 << 20;

/// While a document is incomplete, at least this many of its last bytes wait for the next part.
const REST_BYTES: usize = 256 << 10;

/// The documents on one side of a split, in blocks.
pub(super) struct Blocks<'a> {
    parts: Parts,
    tokenizer: &'a Tokenizer,
    split: Split,
    stopped: &'a (dyn Fn() -> bool + Sync),
    block_bytes: usize,
    /// The texts that came before, if no text may come twice.
    seen: Option<&'a mut Seen>,
    at_end: AtEnd,
    /// Of the document that is read: its hash so far, the end of its text that is in a block, and the
    /// text after that.
    hash: DocumentHash,
    before: String,
    rest: String,
    /// Whether parts of the document are in a block.
    begun: bool,
}

pub(super) struct Block {
    /// Empty at the end of the sources.
    pub(super) parts: Vec<BlockPart>,
    /// The bytes of the source files that were read up to the last of the parts.
    pub(super) bytes_read: u64,
    pub(super) at_end: AtEnd,
}

/// What is known at the end of the last document that ends in a block or before it.
#[derive(Clone, Copy, Default)]
pub(super) struct AtEnd {
    pub(super) position: Position,
    /// The records that were skipped.
    pub(super) skipped: u64,
    /// The documents whose text came before.
    pub(super) duplicates: u64,
}

/// A document, or a part of it.
pub(super) struct BlockPart {
    /// The end of the document's text before this part.
    pub(super) before: String,
    pub(super) text: String,
    /// If the document ends with this part, whether it belongs to the corpus.
    pub(super) kept: Option<bool>,
}

impl BlockPart {
    pub(super) fn texts(&self) -> (&str, &str) {
        (&self.before, &self.text)
    }
}

impl<'a> Blocks<'a> {
    /// The documents of `inputs`, without those whose text is in `seen`. Up to `bad_lines` records that hold no
    /// document are skipped.
    pub(super) fn new(
        options: &PrepareOptions<'a>,
        inputs: Vec<Input>,
        bad_lines: u64,
        block_bytes: usize,
        seen: Option<&'a mut Seen>,
    ) -> Self {
        Self {
            parts: Parts::new(inputs, bad_lines, PART_BYTES),
            tokenizer: options.tokenizer,
            split: options.split,
            stopped: options.stopped,
            block_bytes,
            seen,
            at_end: AtEnd::default(),
            hash: DocumentHash::default(),
            before: String::new(),
            rest: String::new(),
            begun: false,
        }
    }

    /// Skips the documents that are already done in `state`; false if the files do not contain them.
    pub(super) fn pass_over(&mut self, state: &State) -> Result<bool> {
        if self.seen.is_none() {
            self.parts.skip_files(state.position.files);
        }
        while self.parts.position() != state.position {
            if (self.stopped)() {
                return Err(DataError::Stopped);
            }
            let Some(part) = self.parts.next().transpose()? else {
                return Ok(false);
            };
            self.push_hash(&part.text);
            if let Some(end) = part.end {
                self.is_kept(end);
            }
        }
        self.parts.set_skipped(state.skipped);
        self.at_end = AtEnd {
            position: state.position,
            skipped: state.skipped,
            duplicates: state.duplicates,
        };
        Ok(true)
    }

    /// Adds to the hash of the document that is read, where anything depends on it.
    fn push_hash(&mut self, text: &str) {
        if self.split != Split::All || self.seen.is_some() {
            self.hash.push(text);
        }
    }

    /// Whether the document that has ended belongs to the corpus.
    fn is_kept(&mut self, end: End) -> bool {
        let hash = std::mem::take(&mut self.hash);
        if end != End::Document {
            return false;
        }
        let digest = hash.finish();
        if !self.split.has(digest) {
            return false;
        }
        let is_new = self.seen.as_mut().is_none_or(|seen| seen.insert(digest));
        self.at_end.duplicates += u64::from(!is_new);
        is_new
    }

    pub(super) fn read(&mut self) -> Result<Block> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        while bytes < self.block_bytes
            && let Some(part) = self.parts.next().transpose()?
        {
            self.push_hash(&part.text);
            if self.rest.is_empty() {
                self.rest = part.text;
            } else {
                self.rest.push_str(&part.text);
            }
            let part = match part.end {
                Some(end) => self.end(end),
                None => self.cut(),
            };
            bytes += part.as_ref().map_or(0, |part| part.text.len());
            parts.extend(part);
        }
        Ok(Block {
            parts,
            bytes_read: self.parts.bytes_read(),
            at_end: self.at_end,
        })
    }

    /// The last part of a document, unless the document is not kept and no part of it is in a block.
    fn end(&mut self, end: End) -> Option<BlockPart> {
        let kept = self.is_kept(end);
        self.at_end.position = self.parts.position();
        self.at_end.skipped = self.parts.skipped();
        let begun = std::mem::take(&mut self.begun);
        let (before, text) = (
            std::mem::take(&mut self.before),
            std::mem::take(&mut self.rest),
        );
        (kept || begun).then(|| BlockPart {
            before,
            text: if kept { text } else { String::new() },
            kept: Some(kept),
        })
    }

    /// The next part of an incomplete document.
    fn cut(&mut self) -> Option<BlockPart> {
        let from = self.rest.len().checked_sub(REST_BYTES)?;
        let cut = self.tokenizer.first_cut(&self.rest, from);
        if cut == self.rest.len() || cut == 0 {
            return None;
        }
        let rest = self.rest.split_off(cut);
        let text = std::mem::replace(&mut self.rest, rest);
        let after = Tokenizer::context(&text).to_owned();
        let before = std::mem::replace(&mut self.before, after);
        self.begun = true;
        Some(BlockPart {
            before,
            text,
            kept: None,
        })
    }
}
