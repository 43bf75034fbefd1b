//! An open file of text, record by record.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::array::{Element, Elements};
use super::documents::{End, Part};
use super::long_line::{Found, LongLine};
use super::open::open_counted;
use super::parquet::ParquetRows;
use super::put_back::PutBack;
use super::record::{BadRecord, text_of, text_of_object};
use super::{Input, Layout, SourceFile, layout_of, without_byte_order_mark};
use crate::error::{DataError, Result};

/// A file, and how far it has been read.
pub(super) struct OpenFile {
    path: PathBuf,
    /// The field or column of the text.
    column: String,
    records: Records,
    /// The number of the last line read, from 1; 0 before the first.
    line: u64,
}

/// What is left of its records, by their layout.
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
    /// Opens the file of `input`, whose bytes are counted in `bytes_read` as they are read.
    pub(super) fn open(input: Input, bytes_read: &Arc<AtomicU64>) -> Result<Self> {
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

    /// The next part of a document, of about `part_bytes` at most; `None` at the end of the file.
    pub(super) fn next_part(&mut self, part_bytes: usize) -> Result<Option<Part>> {
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
