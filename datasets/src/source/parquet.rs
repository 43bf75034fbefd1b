//! Rows of Parquet files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, Repetition, Type as PhysicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use crate::error::{DataError, Result, cannot};
use crate::panics::caught;

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 64;

/// The rows of a Parquet file, as JSON objects; see [`parquet_rows`].
pub struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    /// The number of the last row read, from 1.
    row: u64,
    /// Whether nothing follows.
    done: bool,
}

/// The rows of a Parquet file, each as a JSON object, in any compression that Parquet defines but LZO.
///
/// Binary columns are text, if they are UTF-8, whether the file calls them so or not, since some writers
/// do not; other bytes are `null`.
///
/// # Errors
///
/// [`DataError::Io`] if the file cannot be opened, [`DataError::BadParquet`] if it is not Parquet. An item
/// is [`DataError::BadParquet`] where the file is damaged; no item follows it.
pub fn parquet_rows(path: &Path) -> Result<ParquetRows> {
    ParquetRows::open(path, None)
}

impl ParquetRows {
    /// The rows of `path`, with one `column` only if it is given, which must hold text.
    pub(super) fn open(path: &Path, column: Option<&str>) -> Result<Self> {
        let file = File::open(path).map_err(cannot("open", path))?;
        let bad = |reason: String| DataError::BadParquet {
            path: path.into(),
            place: "its end".into(),
            reason,
        };
        let reader = caught(|| SerializedFileReader::new(file));
        let reader = reader
            .map_err(bad)?
            .map_err(|error| bad(error.to_string()))?;
        let schema = reader.metadata().file_metadata().schema();
        let projection = match column {
            None => None,
            Some(column) => Some(only(path, schema, column)?),
        };
        let rows = caught(|| {
            let rows = RowIter::from_file_into(Box::new(reader));
            let rows = rows.project(projection)?;
            Ok::<_, parquet::errors::ParquetError>(rows.with_batch_size(BATCH_ROWS))
        });
        Ok(Self {
            path: path.into(),
            rows: rows.map_err(bad)?.map_err(|error| bad(error.to_string()))?,
            row: 0,
            done: false,
        })
    }

    /// The number of the last row read, from 1.
    pub fn row(&self) -> u64 {
        self.row
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Map<String, Value>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.row += 1;
        let row = caught(|| {
            let row = self.rows.next()?;
            Some(
                row.map(|row| object(&row))
                    .map_err(|error| error.to_string()),
            )
        });
        let row = match row {
            Ok(None) => {
                self.done = true;
                return None;
            }
            Ok(Some(row)) => row,
            Err(panic) => Err(panic),
        };
        Some(row.map_err(|reason| {
            self.done = true;
            DataError::BadParquet {
                path: self.path.clone(),
                place: format!("row {}", self.row),
                // Some messages hold all bytes of the value.
                reason: reason.chars().take(200).collect(),
            }
        }))
    }
}

/// The schema of the column with this name alone.
fn only(path: &Path, schema: &Type, column: &str) -> Result<Type> {
    let fields = schema.get_fields();
    let is_text = |field: &Type| {
        let info = field.get_basic_info();
        let one = !(info.has_repetition() && info.repetition() == Repetition::REPEATED);
        one && field.is_primitive()
            && field.get_physical_type() == PhysicalType::BYTE_ARRAY
            && matches!(
                info.converted_type(),
                ConvertedType::NONE
                    | ConvertedType::UTF8
                    | ConvertedType::ENUM
                    | ConvertedType::JSON
            )
    };
    let found = fields.iter().find(|field| field.name() == column);
    let found = found.filter(|field| is_text(field));
    let names = || {
        let names = fields.iter().map(|field| {
            let kind = if is_text(field) { "text" } else { "no text" };
            format!("{:?} ({kind})", field.name())
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let no_column = || DataError::NoColumn {
        path: path.into(),
        column: column.into(),
        columns: names(),
    };
    let found = found.ok_or_else(no_column)?;
    let projection = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(found)]);
    projection.build().map_err(|_| no_column())
}

fn object(row: &Row) -> Map<String, Value> {
    let columns = row.get_column_iter();
    columns
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => Value::Null,
        },
        Field::Group(row) => object(row).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, of_key)| {
                let key = match value(key) {
                    Value::String(key) => key,
                    key => key.to_string(),
                };
                (key, value(of_key))
            });
            Value::Object(entries.collect())
        }
        field => field.to_json_value(),
    }
}

#[cfg(test)]
mod tests;
