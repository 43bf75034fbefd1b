//! The tensors of a safetensors file: a header in JSON, and numbers one after another.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;

use burn::tensor::{BoolStore, DType};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, View};

use super::error::WeightsError;
use super::file::WeightFile;
use super::stored::{Storage, Stored, Tensors};
use crate::atomic_file;
use crate::manifest::Hashing;

/// Bytes of a header, at most, as other readers of the format have it.
const HEADER: u64 = 100_000_000;

pub(super) fn open(path: &Path) -> Result<Tensors, WeightsError> {
    let file = Rc::new(WeightFile::open(path)?);
    let not_whole =
        |reason: String| file.damaged(format!("not a whole safetensors file: {reason}"));
    let Ok(length) = file.bytes(0, 8) else {
        return Err(not_whole(format!("it has {} bytes", file.len())));
    };
    let header = u64::from_le_bytes(length.try_into().expect("8 bytes"));
    if header > HEADER.min(file.len() - 8) {
        return Err(not_whole(format!(
            "its header would have {header} bytes, and it has {} in all",
            file.len()
        )));
    }
    let text = file.bytes(8, header)?;
    // Compares the shapes with the numbers' places, which follow each other.
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|error| not_whole(error.to_string()))?;
    let (start, needed) = (8 + header, metadata.data_len() as u64);
    if file.len() - start != needed {
        return Err(not_whole(format!(
            "it has {} bytes, and should have {}",
            file.len(),
            u128::from(start) + u128::from(needed)
        )));
    }
    let mut tensors = Tensors::new();
    for (name, info) in metadata.tensors() {
        let unread = |reason: String| file.damaged(format!("`{name}` {reason}"));
        let dtype = dtype(info.dtype)
            .ok_or_else(|| unread(format!("holds {:?}, which is not read", info.dtype)))?;
        let (first, end) = info.data_offsets;
        let storage = Rc::new(Storage {
            file: file.clone(),
            name: "its part of the file".into(),
            start: start + first as u64,
            length: (end - first) as u64,
            checksum: Cell::new(None),
        });
        let strides = row_major(&info.shape);
        let tensor = Stored::new(storage, dtype, info.shape.clone(), strides, 0);
        tensors.insert(name.clone(), tensor.map_err(unread)?);
    }
    Ok(tensors)
}

/// Writes the tensors `all` to the file `path`, whole or not at all ([`atomic_file`]), and returns the SHA-256 of
/// what was written, in hexadecimal digits. The bytes are those of [`safetensors::serialize`], with `metadata` in the
/// header. Of the tensors' values, one's are in memory at a time.
///
/// # Errors
/// What the system says, or that a tensor's numbers are not those of its shape and dtype.
pub fn write<V: View>(
    path: &Path,
    mut all: Vec<(String, V)>,
    metadata: Option<HashMap<String, String>>,
) -> io::Result<String> {
    // The widest numbers first, so that each lies where numbers of its size may.
    all.sort_by(|(name, tensor), (other_name, other)| {
        let by_width = other.dtype().cmp(&tensor.dtype());
        by_width.then_with(|| name.cmp(other_name))
    });
    let mut end = 0;
    let infos = all.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data_offsets: (start, end),
        };
        (name.clone(), info)
    });
    let header = Metadata::new(metadata, infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = header.len() as u64;
    if length > HEADER {
        return Err(io::Error::other(format!(
            "a header of {length} bytes, and readers accept {HEADER}"
        )));
    }
    atomic_file::replace(path, |file| {
        let mut file = Hashing::new(file);
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&header)?;
        for (name, tensor) in all {
            let numbers = tensor.data();
            if numbers.len() != tensor.data_len() {
                return Err(io::Error::other(format!("`{name}` has another length")));
            }
            file.write_all(&numbers)?;
        }
        Ok(file.finish())
    })
}

/// The strides of numbers that follow each other. Only those of no numbers can be too large, and these mean nothing.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

fn dtype(stored: Dtype) -> Option<DType> {
    Some(match stored {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn what_is_written_is_the_format_and_hashed() {
        let numbers: Vec<u8> = (0..24).collect();
        let view = |dtype, shape: &[usize], n: usize| {
            TensorView::new(dtype, shape.to_vec(), &numbers[..n]).unwrap()
        };
        let all = vec![
            ("small".to_owned(), view(Dtype::U8, &[3], 3)),
            ("b\"".to_owned(), view(Dtype::F32, &[2, 3], 24)),
            ("a".to_owned(), view(Dtype::F32, &[], 4)),
            ("half".to_owned(), view(Dtype::BF16, &[0, 7], 0)),
        ];
        let metadata = Some(HashMap::from([("format".to_owned(), "pt".to_owned())]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let hash = write(&path, all.clone(), metadata.clone()).unwrap();
        let expected = safetensors::serialize(all, metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        assert_eq!(crate::manifest::hash(&path).unwrap(), hash);
        assert_eq!(open(&path).unwrap().len(), 4);
    }

    fn file_of(header: &str) -> Result<Tensors, WeightsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length, header.as_bytes()].concat()).unwrap();
        open(&path)
    }

    #[test]
    fn sizes_beyond_64_bits() {
        // No numbers, however large the other dimensions are.
        let shape = [0, 1 << 40, 1 << 40];
        let header = format!(r#"{{"a":{{"dtype":"U8","shape":{shape:?},"data_offsets":[0,0]}}}}"#);
        let tensors = file_of(&header).unwrap();
        assert_eq!(
            (&tensors["a"].shape[..], tensors["a"].length),
            (&shape[..], 0)
        );
        // As many bytes as the header can say, in one tensor and in eight.
        let most = u64::MAX;
        let one = format!(r#"{{"a":{{"dtype":"U8","shape":[{most}],"data_offsets":[0,{most}]}}}}"#);
        let n = (1_u64 << 61) - 1;
        let eight = (0..8).map(|i| {
            let (start, end) = (i * n, (i + 1) * n);
            format!(r#""{i}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
        });
        let eight = format!("{{{}}}", eight.collect::<Vec<_>>().join(","));
        for header in [one, eight] {
            let error = file_of(&header).err().expect("refused").to_string();
            assert!(error.contains("not a whole safetensors file"), "{error}");
        }
    }
}
