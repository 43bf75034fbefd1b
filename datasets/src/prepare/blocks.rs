//! Reads documents in blocks: each has work for all cores, and the memory stays bounded.

use crate::error::Result;
use crate::prepare::PrepareOptions;
use crate::source::{End, Parts, SourceFile};
use crate::split::{Side, Split};
use crate::tokenizer::Tokenizer;

/// A long document is read in parts of at least this many bytes, so that there is a good place to cut
/// near the end of each.
const PART_BYTES: usize = 1 << 20;

/// While a document is incomplete, at least this many of its last bytes wait for the next part.
const REST_BYTES: usize = 256 << 10;

/// The documents on one side of a split, in blocks.
pub(super) struct Blocks<'a> {
    parts: Parts,
    tokenizer: &'a Tokenizer,
    split: Split,
    block_bytes: usize,
    /// Of the document that is read: its side so far, the end of its text that is in a block, and the
    /// text after that.
    side: Side,
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
    pub(super) fn new(
        options: &PrepareOptions<'a>,
        sources: Vec<SourceFile>,
        block_bytes: usize,
    ) -> Self {
        let part_bytes = block_bytes.max(PART_BYTES);
        Self {
            parts: Parts::new(sources, options.skip_bad_lines, part_bytes),
            tokenizer: options.tokenizer,
            split: options.split,
            block_bytes,
            side: Side::new(options.split),
            before: String::new(),
            rest: String::new(),
            begun: false,
        }
    }

    /// The number of records that were skipped.
    pub(super) fn skipped(&self) -> u64 {
        self.parts.skipped()
    }

    pub(super) fn read(&mut self) -> Result<Block> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        while bytes < self.block_bytes
            && let Some(part) = self.parts.next().transpose()?
        {
            self.side.push(&part.text);
            if self.rest.is_empty() {
                self.rest = part.text;
            } else {
                self.rest.push_str(&part.text);
            }
            let part = match part.end {
                Some(end) => self.end(end == End::Document),
                None => self.cut(),
            };
            bytes += part.as_ref().map_or(0, |part| part.text.len());
            parts.extend(part);
        }
        let bytes_read = self.parts.bytes_read();
        Ok(Block { parts, bytes_read })
    }

    /// The last part of a document, unless the document is not kept and no part of it is in a block.
    fn end(&mut self, is_document: bool) -> Option<BlockPart> {
        let side = std::mem::replace(&mut self.side, Side::new(self.split));
        let kept = is_document && side.contains();
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
