//! A tensor in a file whose values are not read yet: any strided view of a part of the file, as in PyTorch, or a part
//! that another reader decodes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use burn::tensor::{Bytes, DType, TensorData};
use rayon::prelude::*;

use super::error::WeightsError;
use super::file::WeightFile;
use super::packed::Packed;

/// A part of a file that holds numbers, of one tensor or of several.
pub(super) struct Storage {
    pub(super) file: Rc<WeightFile>,
    /// What messages call it.
    pub(super) name: String,
    /// Its first byte in the file.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) length: u64,
    /// Its CRC-32, where one is known that was not yet compared.
    pub(super) checksum: Cell<Option<u32>>,
}

impl Storage {
    /// Checks the bytes of the storage against its checksum, if there is one.
    fn verify(&self) -> Result<(), WeightsError> {
        let Some(expected) = self.checksum.get() else {
            return Ok(());
        };
        let found = self.file.crc32(self.start, self.length)?;
        if found != expected {
            return Err(self.file.damaged(format!(
                "{} is damaged: its CRC-32 is {found:08x} and should be {expected:08x}",
                self.name
            )));
        }
        self.checksum.set(None);
        Ok(())
    }
}

/// Tensors by their names in the files.
pub(super) type Tensors = BTreeMap<String, Stored>;

/// A tensor in a file. Its values are read when asked for.
pub(super) struct Stored {
    /// That of its values, once they are read.
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// What its numbers are stored as, in small letters.
    pub(super) stored_as: String,
    /// The bytes that they take there.
    pub(super) length: u64,
    values: Box<dyn Values>,
}

/// Where a tensor's values come from.
pub(super) trait Values {
    /// The values, and how many of them are NaN or infinite.
    fn read(&self) -> Result<(TensorData, usize), WeightsError>;

    /// Those of a weight in bits, as they are.
    fn packed(&self) -> Option<&Packed> {
        None
    }
}

/// A view of a storage, as PyTorch has them.
struct View {
    storage: Rc<Storage>,
    dtype: DType,
    shape: Vec<usize>,
    /// Numbers from one element to the next along each dimension; none where they follow each other row-major.
    strides: Option<Vec<usize>>,
    /// Bytes of the storage before the first element, and from there to the end of the last.
    offset: u64,
    span: u64,
}

impl Stored {
    /// The tensor of `values`, in f32, that are stored as `stored_as` in `length` bytes.
    pub(super) fn in_f32(
        shape: Vec<usize>,
        stored_as: String,
        length: u64,
        values: impl Values + 'static,
    ) -> Self {
        Self {
            dtype: DType::F32,
            shape,
            stored_as,
            length,
            values: Box::new(values),
        }
    }

    /// The view of `storage` that begins at its number `offset` and has `shape` and `strides`, all counted in
    /// numbers. What does not fit into the storage is an error, in words that follow the tensor's name.
    pub(super) fn new(
        storage: Rc<Storage>,
        dtype: DType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!(
                "has the shape {shape:?} and the strides {strides:?}"
            ));
        }
        let size = dtype.size();
        let extent = || {
            let elements = shape
                .iter()
                .try_fold(1_usize, |n, size| n.checked_mul(*size))?;
            elements.checked_mul(size)?;
            let mut last = 0_usize;
            if elements > 0 {
                for (n, stride) in shape.iter().zip(&strides) {
                    last = last.checked_add((n - 1).checked_mul(*stride)?)?;
                }
                last = last.checked_add(1)?;
            }
            let start = offset.checked_mul(size)?;
            let span = last.checked_mul(size)?;
            start.checked_add(span)?;
            Some((start as u64, span as u64))
        };
        let (offset, span) = extent()
            .filter(|(offset, span)| offset + span <= storage.length)
            .ok_or_else(|| {
                format!(
                    "reaches beyond {}, which has {} bytes",
                    storage.name, storage.length
                )
            })?;
        let strides = Some(strides).filter(|strides| !is_row_major(&shape, strides));
        Ok(Self {
            dtype,
            shape: shape.clone(),
            stored_as: format!("{dtype:?}").to_lowercase(),
            length: (shape.iter().product::<usize>() * size) as u64,
            values: Box::new(View {
                storage,
                dtype,
                shape,
                strides,
                offset,
                span,
            }),
        })
    }

    /// Its values as they are, if they are in bits.
    pub(super) fn packed(&self) -> Option<&Packed> {
        self.values.packed()
    }

    /// Its values, and how many of them are NaN or infinite.
    pub(super) fn read(&self) -> Result<(TensorData, usize), WeightsError> {
        self.values.read()
    }
}

impl Values for View {
    fn read(&self) -> Result<(TensorData, usize), WeightsError> {
        self.storage.verify()?;
        let file = &self.storage.file;
        let start = self.storage.start + self.offset;
        let dtype = self.dtype;
        let size = dtype.size();
        let mut bytes = zeros(self.shape.iter().product(), size);
        let count = |piece: &[u8]| not_finite(piece, dtype);
        let bad = match &self.strides {
            None => file.fill(&mut bytes, start, count)?,
            Some(strides) => {
                let all = file.bytes(start, self.span)?;
                gather(&all, &mut bytes, size, &self.shape, strides);
                count(&bytes)
            }
        };
        let data = TensorData::from_bytes(bytes, self.shape.clone(), dtype);
        Ok((data, bad))
    }
}

/// Whether the elements follow each other. Where there is one only along a dimension, its stride means nothing.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            let follows = n == 1 || stride == expected;
            expected *= n;
            follows
        })
}

/// `n` numbers of `size` bytes, which lie where numbers of that size may.
fn zeros(n: usize, size: usize) -> Bytes {
    match size {
        8 => Bytes::from_elems(vec![0_u64; n]),
        4 => Bytes::from_elems(vec![0_u32; n]),
        2 => Bytes::from_elems(vec![0_u16; n]),
        _ => Bytes::from_elems(vec![0_u8; n * size]),
    }
}

/// Copies the numbers of a view of `from`, which begins with its first, to `to`, row-major.
fn gather(from: &[u8], to: &mut [u8], size: usize, shape: &[usize], strides: &[usize]) {
    let ([outer @ .., n], [outer_strides @ .., stride]) = (shape, strides) else {
        unreachable!("a single number is row-major");
    };
    let rows = to.par_chunks_mut(n * size).enumerate();
    rows.for_each(|(mut row, to)| {
        let mut at = 0;
        for (n, stride) in outer.iter().zip(outer_strides).rev() {
            at += row % n * stride;
            row /= n;
        }
        for (i, number) in to.chunks_exact_mut(size).enumerate() {
            let place = (at + i * stride) * size;
            number.copy_from_slice(&from[place..place + size]);
        }
    });
}

/// Numbers that are looked at together.
const BLOCK: usize = 4096;

/// How many of the floating-point numbers in `bytes` are NaN or infinite.
pub(super) fn not_finite(bytes: &[u8], dtype: DType) -> usize {
    fn count<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> usize {
        // Almost always there is none, which many instructions at once can say of a block.
        let blocks = bytes.as_chunks::<N>().0.chunks(BLOCK);
        let has_bad = |block: &&[[u8; N]]| {
            block
                .iter()
                .fold(false, |found, number| found | is_bad(*number))
        };
        let bad = blocks.filter(has_bad).flatten();
        bad.filter(|number| is_bad(**number)).count()
    }
    // Those whose exponents have all bits set.
    let has = |bits: u16, exponent: u16| bits & exponent == exponent;
    match dtype {
        DType::F64 => count(bytes, |number| !f64::from_ne_bytes(number).is_finite()),
        DType::F32 => count(bytes, |number| !f32::from_ne_bytes(number).is_finite()),
        DType::F16 => count(bytes, |number| has(u16::from_ne_bytes(number), 0x7c00)),
        DType::BF16 => count(bytes, |number| has(u16::from_ne_bytes(number), 0x7f80)),
        _ => 0,
    }
}
