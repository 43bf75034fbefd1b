//! The header of a GGUF file: its keys, and where its tensors are.
//!
//! Every length is compared with what is left of the file before anything is read or kept, so that a damaged
//! header can neither ask for more memory than in proportion to the file nor take longer than to read it.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::blocks::BlockType;
use crate::config_error::ConfigError;
use crate::weights::error::WeightsError;
use crate::weights::file::WeightFile;

/// The first bytes of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Where the data of tensors begin, unless a file says otherwise.
const ALIGNMENT: u64 = 32;
/// Bytes of the name of a key or a tensor, at most.
const LONGEST_NAME: u64 = 1 << 16;
/// Dimensions of a tensor, at most.
const DIMENSIONS: u32 = 4;
/// Bytes that are read at a time, where less is needed.
const WINDOW: u64 = 1 << 20;

/// The numbers of the types of values that have no fixed size.
const INTEGER: u32 = 5;
const FLOAT: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A file's keys, without the elements of arrays.
pub(super) struct Header {
    file: Rc<WeightFile>,
    /// Numbers, texts and truth values, by their keys. An array, which is read when it is asked for, is a text
    /// here that says so.
    pub(super) values: Map<String, Value>,
    arrays: BTreeMap<String, Array>,
    pub(super) tensors: Vec<TensorInfo>,
}

/// An array in the file.
#[derive(Clone, Copy)]
struct Array {
    kind: u32,
    length: u64,
    /// Its first element's place.
    start: u64,
}

/// Where a tensor is, and what it is.
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Row-major, `[d_out, d_in]` for a projection: the file has them in the other order.
    pub(super) shape: Vec<usize>,
    pub(super) kind: &'static BlockType,
    /// The place of its first byte in the file.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) length: u64,
}

impl Header {
    /// Reads that of the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Rc::new(WeightFile::open(path)?);
        let mut cursor = Cursor::new(&file, 0);
        if file.len() < 4 || cursor.take(4)? != MAGIC {
            return Err(file.damaged("not a GGUF file: it does not begin with GGUF"));
        }
        match cursor.u32()? {
            2 | 3 => {}
            version if version.swap_bytes() < 1 << 16 => {
                return Err(file.damaged(
                    "a GGUF file for big-endian machines, which is not read; convert the model to a \
                     little-endian one",
                ));
            }
            version => {
                return Err(file.damaged(format!(
                    "version {version} of GGUF, and 2 and 3 are read; convert the model anew"
                )));
            }
        }
        let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
        let mut values = Map::new();
        let mut arrays = BTreeMap::new();
        for _ in 0..keys {
            let key = cursor.name("a key")?;
            let value = match cursor.u32()? {
                ARRAY => {
                    let array = cursor.array(&key)?;
                    arrays.insert(key.clone(), array);
                    Value::String(format!("an array of {} values", array.length))
                }
                TEXT => Value::String(cursor.text(&key)?),
                kind => cursor.number(kind, &key)?,
            };
            if values.insert(key.clone(), value).is_some() {
                return Err(file.damaged(format!("it has the key `{key}` twice")));
            }
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            // The places of data are known once all tensors are.
            found.push(cursor.tensor()?);
        }
        let end = cursor.at;
        let mut header = Self {
            file,
            values,
            arrays,
            tensors: found,
        };
        header.place(end)?;
        Ok(header)
    }

    /// Turns the tensors' places, counted from the data behind the header's `end`, into places of the file.
    fn place(&mut self, end: u64) -> Result<(), WeightsError> {
        let file = &self.file;
        let alignment = match self.values.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|n| n.is_power_of_two() && *n <= WINDOW)
                .ok_or_else(|| {
                    file.damaged(format!(
                        "`general.alignment` is {value}; it should be a power of two"
                    ))
                })?,
        };
        let data = end.next_multiple_of(alignment);
        for tensor in &mut self.tensors {
            let damaged = |reason: &str| file.damaged(format!("`{}` {reason}", tensor.name));
            if !tensor.start.is_multiple_of(alignment) {
                return Err(damaged("does not begin where a tensor may"));
            }
            let start = data.checked_add(tensor.start);
            let end = start.and_then(|start| start.checked_add(tensor.length));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(damaged("has an impossible place"));
            };
            if end > file.len() {
                return Err(damaged(&format!(
                    "reaches to byte {end} of the file, which has {}: the file is cut short or damaged",
                    file.len()
                )));
            }
            tensor.start = start;
        }
        let mut order: Vec<&TensorInfo> = self.tensors.iter().collect();
        order.sort_by_key(|tensor| tensor.start);
        for pair in order.windows(2) {
            if pair[0].start + pair[0].length > pair[1].start {
                return Err(file.damaged(format!(
                    "`{}` and `{}` lie in the same place",
                    pair[0].name, pair[1].name
                )));
            }
        }
        Ok(())
    }

    pub(super) fn file(&self) -> &Rc<WeightFile> {
        &self.file
    }

    /// An error of what the keys say.
    pub(super) fn error(&self, source: ConfigError) -> WeightsError {
        let path = self.file.path().into();
        WeightsError::Config { path, source }
    }

    /// The text of `key`, if there is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        if self.arrays.contains_key(key) {
            return None;
        }
        self.values.get(key)?.as_str()
    }

    /// The array `key` of texts; `None` if there is no such key.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, WeightsError> {
        self.array(key, TEXT, |cursor| cursor.text(key))
    }

    /// The array `key` of numbers in i32; `None` if there is no such key.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, WeightsError> {
        self.array(key, INTEGER, |cursor| {
            Ok(i32::from_le_bytes(cursor.array_of_bytes()?))
        })
    }

    /// The array `key` of numbers in f32; `None` if there is no such key.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, WeightsError> {
        self.array(key, FLOAT, |cursor| {
            Ok(f32::from_le_bytes(cursor.array_of_bytes()?))
        })
    }

    fn array<T>(
        &self,
        key: &str,
        kind: u32,
        mut element: impl FnMut(&mut Cursor<'_>) -> Result<T, WeightsError>,
    ) -> Result<Option<Vec<T>>, WeightsError> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        let Some(array) = self.arrays.get(key).filter(|array| array.kind == kind) else {
            let wanted = match kind {
                TEXT => "texts",
                FLOAT => "f32",
                _ => "i32",
            };
            let reason = format!("`{key}` is {value}; it should be an array of {wanted}");
            return Err(self.file.damaged(reason));
        };
        let mut cursor = Cursor::new(&self.file, array.start);
        let elements = (0..array.length).map(|_| element(&mut cursor));
        elements.collect::<Result<_, _>>().map(Some)
    }
}

/// A place in the header.
struct Cursor<'a> {
    file: &'a WeightFile,
    at: u64,
    /// Bytes of the file from `window_start` on.
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a WeightFile, at: u64) -> Self {
        Self {
            file,
            at,
            window: Vec::new(),
            window_start: at,
        }
    }

    fn left(&self) -> u64 {
        self.file.len() - self.at
    }

    /// Steps over `n` bytes.
    fn skip(&mut self, n: u64) -> Result<(), WeightsError> {
        if n > self.left() {
            return Err(self.file.damaged(format!(
                "not a whole GGUF file: it has {} bytes, and its header has {n} more from byte {} on",
                self.file.len(),
                self.at
            )));
        }
        self.at += n;
        Ok(())
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<&[u8], WeightsError> {
        let start = self.at;
        self.skip(n)?;
        let window_end = self.window_start + self.window.len() as u64;
        if start < self.window_start || self.at > window_end {
            let length = n.max(WINDOW).min(self.file.len() - start);
            self.window = self.file.bytes(start, length)?;
            self.window_start = start;
        }
        let from = (start - self.window_start) as usize;
        Ok(&self.window[from..from + n as usize])
    }

    fn array_of_bytes<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    fn u32(&mut self) -> Result<u32, WeightsError> {
        self.array_of_bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WeightsError> {
        self.array_of_bytes().map(u64::from_le_bytes)
    }

    /// A text, with its length before it; `name` is what messages call it.
    fn text(&mut self, name: &str) -> Result<String, WeightsError> {
        let length = self.u64()?;
        let text = std::str::from_utf8(self.take(length)?).map(str::to_owned);
        text.map_err(|_| self.file.damaged(format!("{name} is not UTF-8")))
    }

    /// The name of a key or of a tensor.
    fn name(&mut self, what: &str) -> Result<String, WeightsError> {
        let at = self.at;
        let length = self.u64()?;
        if length > LONGEST_NAME {
            return Err(self.file.damaged(format!(
                "not a whole GGUF file: the name of {what} at byte {at} would have {length} bytes"
            )));
        }
        self.at = at;
        self.text(what)
    }

    /// The number or truth value of `key`, of the type `kind`.
    fn number(&mut self, kind: u32, key: &str) -> Result<Value, WeightsError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array_of_bytes()?).into(),
            1 => i8::from_le_bytes(self.array_of_bytes()?).into(),
            2 => u16::from_le_bytes(self.array_of_bytes()?).into(),
            3 => i16::from_le_bytes(self.array_of_bytes()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array_of_bytes()?).into(),
            // The shortest decimal number that rounds to it: 1e-5, and not 9.9999997e-6.
            6 => {
                let text = f32::from_le_bytes(self.array_of_bytes()?).to_string();
                text.parse::<f64>().unwrap_or(f64::NAN).into()
            }
            7 => (u8::from_le_bytes(self.array_of_bytes()?) != 0).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array_of_bytes()?).into(),
            12 => f64::from_le_bytes(self.array_of_bytes()?).into(),
            _ => return Err(self.unknown(kind, key)),
        })
    }

    /// Steps over the elements of the array `key`.
    fn array(&mut self, key: &str) -> Result<Array, WeightsError> {
        let (kind, length) = (self.u32()?, self.u64()?);
        let start = self.at;
        let bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            TEXT => {
                for _ in 0..length {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                0
            }
            _ => return Err(self.unknown(kind, key)),
        };
        self.skip(length.saturating_mul(bytes))?;
        Ok(Array {
            kind,
            length,
            start,
        })
    }

    fn unknown(&self, kind: u32, key: &str) -> WeightsError {
        self.file.damaged(format!(
            "`{key}` has values of type {kind}, which are not read"
        ))
    }

    /// A tensor, whose `start` is counted from the start of the data.
    fn tensor(&mut self) -> Result<TensorInfo, WeightsError> {
        let name = self.name("a tensor")?;
        let damaged =
            |file: &WeightFile, reason: String| file.damaged(format!("`{name}` {reason}"));
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            let reason = format!("would have {dimensions} dimensions");
            return Err(damaged(self.file, reason));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size)
                .map_err(|_| damaged(self.file, format!("would have a dimension of {size}")))?;
            shape.insert(0, size);
        }
        let kind = BlockType::of(self.u32()?).map_err(|unread| {
            let reason = format!(
                "is stored as {unread}, which is not read; take a file with {} only",
                BlockType::names()
            );
            damaged(self.file, reason)
        })?;
        let start = self.u64()?;
        let row = shape[shape.len() - 1];
        if !row.is_multiple_of(kind.elements) {
            let reason = format!(
                "has rows of {row} numbers in {}, whose blocks have {}",
                kind.name, kind.elements
            );
            return Err(damaged(self.file, reason));
        }
        let elements = shape
            .iter()
            .try_fold(1_usize, |n, size| n.checked_mul(*size));
        // The values take four bytes each.
        let elements = elements.filter(|n| n.checked_mul(4).is_some());
        let length = elements.and_then(|n| (n / kind.elements).checked_mul(kind.bytes));
        let length =
            length.ok_or_else(|| damaged(self.file, format!("would have the shape {shape:?}")))?;
        Ok(TensorInfo {
            name,
            shape,
            kind,
            start,
            length: length as u64,
        })
    }
}
