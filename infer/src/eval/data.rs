//! Reading documents from files of JSON lines and of Parquet.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use parquet::file::reader::SerializedFileReader;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{EvalError, cannot};
use super::task::Document;

/// The endings of data files. If a folder has several for one task, the first in this list is read.
pub const ENDINGS: [&str; 5] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".parquet"];

/// A record of a file, and its place: "line 3" or "row 3", counted from 1. If the file cannot be read to
/// its end, the last record is the reason.
type Record = (String, Result<Value, String>);

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
            let fields = record
                .and_then(|value| serde_json::from_value(value).map_err(|error| error.to_string()));
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
    let file = File::open(path).map_err(cannot("open", path))?;
    let name = path.to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return rows(path, file);
    }
    let file = BufReader::new(file);
    Ok(if name.ends_with(".gz") {
        // A file may have several gzip streams, one after the other.
        Box::new(lines(BufReader::new(MultiGzDecoder::new(file))))
    } else if name.ends_with(".zst") {
        let decoder = zstd::Decoder::with_buffer(file).map_err(cannot("open", path))?;
        Box::new(lines(BufReader::new(decoder)))
    } else {
        Box::new(lines(file))
    })
}

/// JSON values, one per line. Blank lines and byte-order marks are skipped.
fn lines(mut text: impl BufRead) -> impl Iterator<Item = Record> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            number += 1;
            let read = text.read_until(b'\n', &mut line);
            let value = match read.map(|_| std::str::from_utf8(&line)) {
                Ok(Ok("")) => return None,
                Ok(Ok(line)) => {
                    let line = line.trim_start_matches('\u{feff}');
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
                Err(reason) => Err(format!("{reason}; the file is truncated or damaged")),
            };
            return Some((format!("line {number}"), value));
        }
    })
}

/// The rows of a parquet file.
fn rows(path: &Path, file: File) -> Result<Box<dyn Iterator<Item = Record>>, EvalError> {
    let reader = SerializedFileReader::new(file).map_err(|error| EvalError::Damaged {
        path: path.into(),
        place: "its end".into(),
        reason: error.to_string(),
    })?;
    let rows = reader.into_iter().enumerate();
    Ok(Box::new(rows.map(|(i, row)| {
        let row = row.map_err(|error| error.to_string());
        (format!("row {}", i + 1), row.map(|row| row.to_json_value()))
    })))
}
