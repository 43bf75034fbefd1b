//! The tensors of a safetensors file: a header in JSON, and numbers one after another.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use burn::tensor::{BoolStore, DType};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::error::WeightsError;
use super::file::WeightFile;
use super::read::Tensors;
use super::stored::{Storage, Stored};

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
    use super::*;

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
            (&tensors["a"].shape[..], tensors["a"].len()),
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
