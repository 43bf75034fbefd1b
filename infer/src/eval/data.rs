//! Reading documents from files of JSON lines and of Parquet.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use datasets::{DataError, open_text, parquet_rows, without_byte_order_mark};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::document::Document;
use super::error::EvalError;

/// The endings of data files. If a folder has several for one task, the first in this list is read.
pub const ENDINGS: [&str; 5] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".parquet"];

/// The most bytes of a line, which is in memory as a whole.
const LINE_BYTES: usize = 64 << 20;

/// A record of a file, and its place: "line 3" or "row 3", counted from 1. If the file cannot be read to
/// its end, the last record is the reason.
type Record = (String, Result<Map<String, Value>, String>);

/// The first `limit` documents of `files`. Each record is parsed as a `T`, which `document` converts.
///
/// # Errors
/// [`EvalError::Io`], [`EvalError::Damaged`] and [`EvalError::Empty`].
pub fn read<T: DeserializeOwned>(
    files: &[PathBuf],
    limit: usize,
    document: impl Fn(T) -> Result<Document, String>,
) -> Result<Vec<Document>, EvalError> {
    let mut documents = Vec::new();
    for path in files {
        let before = documents.len();
        for (place, record) in records(path)?.take(limit - before) {
            let fields = record.and_then(|fields| {
                serde_json::from_value(fields.into()).map_err(|error| error.to_string())
            });
            documents.push(
                fields
                    .and_then(&document)
                    .map_err(|reason| EvalError::Damaged {
                        path: path.clone(),
                        place,
                        reason,
                    })?,
            );
        }
        if documents.len() == limit {
            break;
        }
        if documents.len() == before {
            return Err(EvalError::Empty { path: path.clone() });
        }
    }
    Ok(documents)
}

fn records(path: &Path) -> Result<Box<dyn Iterator<Item = Record>>, EvalError> {
    let name = path.to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        let rows = parquet_rows(path)?.enumerate().map(|(i, row)| {
            let row = row.map_err(|error| match error {
                // The place and the path are added to it.
                DataError::BadParquet { reason, .. } => reason,
                error => error.to_string(),
            });
            (format!("row {}", i + 1), row)
        });
        return Ok(Box::new(rows));
    }
    Ok(Box::new(lines(open_text(path)?)))
}

/// JSON objects, one per line. Blank lines and a byte-order mark at the beginning are skipped.
fn lines(mut text: impl BufRead) -> impl Iterator<Item = Record> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            number += 1;
            let limited = (&mut text).take(LINE_BYTES as u64 + 1);
            let read = { limited }.read_until(b'\n', &mut line);
            let value = match read.map(|_| std::str::from_utf8(&line)) {
                Ok(Ok("")) => return None,
                Ok(_) if line.len() > LINE_BYTES => {
                    Err("a line of more than 64 MiB, which is no document of a task".into())
                }
                Ok(Ok(line)) => {
                    let line = if number == 1 {
                        without_byte_order_mark(line)
                    } else {
                        line
                    };
                    if line.trim().is_empty() {
                        continue;
                    }
                    serde_json::from_str(line).map_err(|error| {
                        // The parser sees one line only, so its message always says line 1.
                        let reason = error.to_string();
                        let reason = reason.split(" at line 1 column").next().unwrap_or_default();
                        format!("no JSON, from column {} on: {reason}", error.column())
                    })
                }
                Ok(Err(_)) => Err("not UTF-8".into()),
                // The file was compressed in a way that is not read; the reason says so.
                Err(reason) if reason.kind() == io::ErrorKind::Unsupported => {
                    Err(reason.to_string())
                }
                Err(reason) => Err(format!("{reason}; the file is truncated or damaged")),
            };
            return Some((format!("line {number}"), value));
        }
    })
}
