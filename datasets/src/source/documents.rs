//! The documents of text files, one after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::records::OpenFile;
use super::{Input, SourceFile};
use crate::error::Result;

/// An iterator over the documents of some files. It reads each document when it is requested, so that
/// never more than one is in memory.
///
/// Blank lines between JSON objects and a byte-order mark at the beginning of a file are ignored. An
/// empty text is a document too. An item is an error if a file cannot be opened, read, decompressed
/// or parsed; no item follows an error.
///
/// ```
/// use datasets::{Documents, source_files};
///
/// # fn main() -> datasets::Result<()> {
/// let files = source_files(&["../assets/text/pd-validation.json.gz".into()])?;
/// let documents: Vec<String> = Documents::new(files).collect::<Result<_, _>>()?;
/// assert_eq!(documents.len(), 26);
/// # Ok(())
/// # }
/// ```
pub struct Documents(Parts);

impl Documents {
    /// The documents of `files`, in their order.
    pub fn new(files: Vec<SourceFile>) -> Self {
        Self::skipping(files, 0)
    }

    /// The documents of `files`, without the first `bad_lines` records that hold none: lines and rows that
    /// are no JSON, not UTF-8 or without text. The next such record is an error.
    pub fn skipping(files: Vec<SourceFile>, bad_lines: u64) -> Self {
        let inputs = files.into_iter().map(Input::from).collect();
        Self(Parts::new(inputs, bad_lines, usize::MAX))
    }

    /// The number of bytes read from disk so far, of the [`SourceFile::bytes`] of all files.
    pub fn bytes_read(&self) -> u64 {
        self.0.bytes_read()
    }

    /// The number of records that were skipped so far, of those that [`skipping`](Self::skipping) allows.
    pub fn skipped(&self) -> u64 {
        self.0.skipped()
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut document = String::new();
        loop {
            match self.0.next()? {
                Err(error) => return Some(Err(error)),
                Ok(part) => {
                    if document.is_empty() {
                        document = part.text;
                    } else {
                        document.push_str(&part.text);
                    }
                    match part.end {
                        Some(End::Document) => return Some(Ok(document)),
                        Some(End::Nothing) => document.clear(),
                        None => {}
                    }
                }
            }
        }
    }
}

/// A part of a document.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) text: String,
    /// How the document ends, if it does with this part.
    pub(crate) end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The parts since the last end are a document.
    Document,
    /// The parts since the last end are none: they are the beginning of a record that is skipped.
    Nothing,
}

/// A place between two records of some files, which is found again in the same files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The files before it.
    pub(crate) files: usize,
    /// The records of its file before it, those without a text too.
    pub(crate) records: u64,
}

/// The documents of some files in parts, so that no long document needs to be in memory as a whole.
pub(crate) struct Parts {
    inputs: std::vec::IntoIter<Input>,
    current: Option<OpenFile>,
    position: Position,
    bytes_read: Arc<AtomicU64>,
    /// About the most bytes of a part.
    part_bytes: usize,
    bad_lines: u64,
    skipped: u64,
}

impl Parts {
    pub(crate) fn new(inputs: Vec<Input>, bad_lines: u64, part_bytes: usize) -> Self {
        Self {
            inputs: inputs.into_iter(),
            current: None,
            position: Position::default(),
            bytes_read: Arc::default(),
            part_bytes,
            bad_lines,
            skipped: 0,
        }
    }

    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Says how many records were skipped, where that is known from before.
    pub(crate) fn set_skipped(&mut self, skipped: u64) {
        self.skipped = skipped;
    }

    /// Passes over the first `files` files, before any is read.
    pub(crate) fn skip_files(&mut self, files: usize) {
        let passed_over = self.inputs.by_ref().take(files);
        let bytes = passed_over.map(|input| input.file.bytes).sum();
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        self.position = Position { files, records: 0 };
    }

    /// How many files and records are read in full.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    fn next_part(&mut self) -> Result<Option<Part>> {
        loop {
            if let Some(file) = &mut self.current {
                match file.next_part(self.part_bytes) {
                    Ok(Some(part)) => {
                        self.position.records += u64::from(part.end.is_some());
                        return Ok(Some(part));
                    }
                    Ok(None) => {
                        self.current = None;
                        self.position.files += 1;
                        self.position.records = 0;
                    }
                    Err(error) if error.is_bad_record() && self.skipped < self.bad_lines => {
                        self.skipped += 1;
                        self.position.records += 1;
                        log::debug!("skipped: {error}");
                        let end = Some(End::Nothing);
                        let text = String::new();
                        return Ok(Some(Part { text, end }));
                    }
                    Err(error) => return Err(error),
                }
            }
            match self.inputs.next() {
                Some(input) => self.current = Some(OpenFile::open(input, &self.bytes_read)?),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for Parts {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_part();
        if next.is_err() {
            self.current = None;
            self.inputs = Vec::new().into_iter();
        }
        next.transpose()
    }
}
