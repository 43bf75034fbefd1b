//! Files in, documents out.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use parquet::file::reader::SerializedFileReader;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{EvalError, cannot};
use super::task::Document;

/// What the name of a file of data ends with. Of several, the first here is taken.
pub const ENDINGS: [&str; 5] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".parquet"];

/// A record of a file, and where it is: "line 3" or "row 3", from 1. The last may be the reason why
/// no more can be read.
type Record = (String, Result<Value, String>);

/// The first `limit` documents of `files`, whose records are `T`s that `document` turns into them.
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
            let fields =
                record.and_then(|it| serde_json::from_value(it).map_err(|e| e.to_string()));
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
        // A file may be several gzip streams, one behind the other.
        Box::new(lines(BufReader::new(MultiGzDecoder::new(file))))
    } else if name.ends_with(".zst") {
        let decoder = zstd::Decoder::with_buffer(file).map_err(cannot("open", path))?;
        Box::new(lines(BufReader::new(decoder)))
    } else {
        Box::new(lines(file))
    })
}

/// JSON values, one a line. Blank lines are passed over, and so is a byte-order mark.
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
                        // Its line is always the first: it sees no other.
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
