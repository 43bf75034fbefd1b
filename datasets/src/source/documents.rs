//! The documents of text files, one after another.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::array::{Element, Elements};
use super::long_line::{Found, LongLine};
use super::open::open_counted;
use super::parquet::ParquetRows;
use super::put_back::PutBack;
use super::record::{BadRecord, text_of, text_of_object};
use super::{Input, Layout, SourceFile, layout_of, without_byte_order_mark};
use crate::error::{DataError, Result};

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

struct OpenFile {
    path: PathBuf,
    /// The field or column of the text.
    column: String,
    records: Records,
    /// The number of the last line read, from 1; 0 before the first.
    line: u64,
}

enum Records {
    Whole {
        text: Text,
        /// Bytes of an incomplete character.
        rest: Vec<u8>,
    },
    Lines {
        text: PutBack<Text>,
        long: Option<LongLine>,
    },
    Array(Elements<Text>),
    Rows {
        rows: ParquetRows,
        /// The size of the file, counted as read when it is.
        bytes: u64,
        bytes_read: Arc<AtomicU64>,
    },
}

type Text = Box<dyn BufRead + Send>;

impl OpenFile {
    fn open(input: Input, bytes_read: &Arc<AtomicU64>) -> Result<Self> {
        let path = input.locate()?;
        let SourceFile { bytes, column, .. } = input.file;
        let Some(layout) = layout_of(&path) else {
            return Err(DataError::UnknownFormat { path });
        };
        let open = || open_counted(&path, Arc::clone(bytes_read));
        let records = match layout {
            Layout::Parquet => Records::Rows {
                rows: ParquetRows::open(&path, Some(&column))?,
                bytes,
                bytes_read: Arc::clone(bytes_read),
            },
            Layout::Whole => Records::Whole {
                text: open()?,
                rest: Vec::new(),
            },
            Layout::JsonLines => Records::Lines {
                text: PutBack::new(open()?),
                long: None,
            },
            Layout::Json => {
                let mut text = open()?;
                let begins = begins_array(&mut text);
                let begins = begins.map_err(|reason| DataError::Unreadable {
                    path: path.clone(),
                    line: 1,
                    reason,
                })?;
                if begins {
                    Records::Array(Elements::new(text))
                } else {
                    Records::Lines {
                        text: PutBack::new(text),
                        long: None,
                    }
                }
            }
        };
        Ok(Self {
            path,
            column,
            records,
            line: 0,
        })
    }

    fn next_part(&mut self, part_bytes: usize) -> Result<Option<Part>> {
        let document = |text: Option<String>| {
            let end = Some(End::Document);
            text.map(|text| Part { text, end })
        };
        match &mut self.records {
            Records::Whole { .. } => self.whole(part_bytes),
            Records::Lines { .. } => self.next_line(part_bytes),
            Records::Array(_) => Ok(document(self.next_element()?)),
            Records::Rows { .. } => Ok(document(self.next_row()?)),
        }
    }

    /// The next part of a file that is one document.
    fn whole(&mut self, part_bytes: usize) -> Result<Option<Part>> {
        let Records::Whole { text, rest } = &mut self.records else {
            return Ok(None);
        };
        let first = self.line == 0;
        let mut bytes = std::mem::take(rest);
        let limit = u64::try_from(part_bytes).unwrap_or(u64::MAX);
        let read = text.by_ref().take(limit).read_to_end(&mut bytes);
        let at_end = read.and_then(|_| Ok(text.fill_buf()?.is_empty()));
        self.line = self.line.max(1);
        let at_end = at_end.map_err(|reason| self.unreadable(reason))?;
        if !first && bytes.is_empty() {
            return Ok(None);
        }
        if !at_end {
            let Records::Whole { rest, .. } = &mut self.records else {
                return Ok(None);
            };
            let whole = match std::str::from_utf8(&bytes) {
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                _ => bytes.len(),
            };
            *rest = bytes.split_off(whole);
        }
        let mut part = self.utf8(bytes)?;
        if first {
            drop_mark(&mut part);
        }
        self.line += part.bytes().filter(|&byte| byte == b'\n').count() as u64;
        if at_end {
            // The next call finds nothing.
            self.records = Records::Whole {
                text: Box::new(io::empty()),
                rest: Vec::new(),
            };
        }
        let end = at_end.then_some(End::Document);
        Ok(Some(Part { text: part, end }))
    }

    /// The next document of JSON lines, or the next part of a long one.
    fn next_line(&mut self, part_bytes: usize) -> Result<Option<Part>> {
        loop {
            let Records::Lines { text, long } = &mut self.records else {
                return Ok(None);
            };
            if let Some(line) = long {
                let found = line.read(text, part_bytes);
                let found = found.map_err(|reason| self.unreadable(reason))?;
                if !matches!(found, Ok(Found::Part(_)))
                    && let Records::Lines { long, .. } = &mut self.records
                {
                    *long = None;
                }
                return match found {
                    Ok(Found::Part(text)) => Ok(Some(Part { text, end: None })),
                    Ok(Found::End) => Ok(Some(Part {
                        text: String::new(),
                        end: Some(End::Document),
                    })),
                    Err(reason) => Err(self.bad(reason)),
                };
            }
            self.line += 1;
            let mut bytes = Vec::new();
            let limit = u64::try_from(part_bytes).unwrap_or(u64::MAX);
            let read = text.by_ref().take(limit).read_until(b'\n', &mut bytes);
            if read.map_err(|reason| self.unreadable(reason))? == 0 {
                return Ok(None);
            }
            if self.line == 1 && bytes.starts_with("\u{feff}".as_bytes()) {
                bytes.drain(.."\u{feff}".len());
            }
            if bytes.len() >= part_bytes && bytes.last() != Some(&b'\n') {
                self.begin_long_line(bytes);
                continue;
            }
            let line = self.utf8(bytes)?;
            if !line.trim().is_empty() {
                let text = text_of_object(&line, &self.column);
                let text = text.map_err(|reason| self.bad(reason))?;
                let end = Some(End::Document);
                return Ok(Some(Part { text, end }));
            }
        }
    }

    /// Reads the line that begins with `bytes` part by part.
    fn begin_long_line(&mut self, bytes: Vec<u8>) {
        if let Records::Lines { text, long } = &mut self.records {
            text.put_back(bytes);
            *long = Some(LongLine::new(&self.column));
        }
    }

    fn next_element(&mut self) -> Result<Option<String>> {
        let Records::Array(elements) = &mut self.records else {
            return Ok(None);
        };
        let element = elements.next();
        self.line = elements.element_line();
        match element.map_err(|reason| self.unreadable(reason))? {
            Element::End => Ok(None),
            Element::Json(bytes) => {
                let json = self.utf8(bytes)?;
                let text = text_of(&json, &self.column);
                let text = text.map_err(|reason| self.bad(reason))?;
                Ok(Some(text))
            }
            Element::NoArray { reason } => Err(DataError::BadArray {
                path: self.path.clone(),
                line: self.line,
                reason,
            }),
        }
    }

    fn next_row(&mut self) -> Result<Option<String>> {
        let Records::Rows {
            rows,
            bytes,
            bytes_read,
        } = &mut self.records
        else {
            return Ok(None);
        };
        let row = rows.next().transpose()?;
        let Some(mut row) = row else {
            bytes_read.fetch_add(std::mem::take(bytes), Ordering::Relaxed);
            return Ok(None);
        };
        match row.remove(&self.column) {
            Some(Value::String(text)) => Ok(Some(text)),
            _ => Err(DataError::NoTextInRow {
                path: self.path.clone(),
                row: rows.row(),
                column: self.column.clone(),
            }),
        }
    }

    fn bad(&self, reason: BadRecord) -> DataError {
        let (path, line) = (self.path.clone(), self.line);
        match reason {
            BadRecord::NoText { fields } => DataError::NoText {
                path,
                line,
                column: self.column.clone(),
                fields,
            },
            BadRecord::Json { column, reason } => DataError::BadJson {
                path,
                line,
                column,
                reason,
            },
        }
    }

    /// The text of `bytes`, which begin at the current line.
    fn utf8(&self, bytes: Vec<u8>) -> Result<String> {
        String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let good = error.as_bytes().iter().take(good);
            DataError::NotUtf8 {
                path: self.path.clone(),
                line: self.line + good.filter(|&&byte| byte == b'\n').count() as u64,
                is_record: !matches!(self.records, Records::Whole { .. }),
            }
        })
    }

    fn unreadable(&self, reason: io::Error) -> DataError {
        DataError::Unreadable {
            path: self.path.clone(),
            line: self.line,
            reason,
        }
    }
}

fn drop_mark(text: &mut String) {
    let mark = text.len() - without_byte_order_mark(text).len();
    text.drain(..mark);
}

/// Whether the first character of JSON text, after a byte-order mark and blanks, begins an array. Reads
/// nothing but these.
fn begins_array(text: &mut Text) -> io::Result<bool> {
    let mark = "\u{feff}".as_bytes();
    if text.fill_buf()?.starts_with(mark) {
        text.consume(mark.len());
    }
    // Blank lines are counted by who reads on, so none is taken: an array seldom begins with one.
    let begins = text.fill_buf()?.trim_ascii_start().first() == Some(&b'[');
    Ok(begins)
}
