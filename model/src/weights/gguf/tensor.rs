//! The values of one tensor of a GGUF file.

use std::rc::Rc;

use burn::tensor::TensorData;
use rayon::prelude::*;

use super::blocks::BlockType;
use super::header::TensorInfo;
use crate::weights::error::WeightsError;
use crate::weights::file::WeightFile;
use crate::weights::stored::Values;

/// Bytes of the file that one core decodes at a time, about.
const PIECE: usize = 1 << 18;

/// A tensor in blocks, of which some rows are decoded at a time, on all cores.
pub(super) struct Blocks {
    file: Rc<WeightFile>,
    start: u64,
    kind: &'static BlockType,
    shape: Vec<usize>,
    /// Numbers that keep their places among each other.
    row: usize,
    /// Rows that change places among each other: those of a head, or one.
    heads: usize,
}

impl Blocks {
    /// The tensor `info` of `file`. The rows of each head, of `interleaved` rows, are put into the order of
    /// Hugging Face's files.
    pub(super) fn new(
        file: Rc<WeightFile>,
        info: &TensorInfo,
        interleaved: Option<usize>,
    ) -> Result<Self, WeightsError> {
        let rows = info.shape[0];
        // Of another number of rows, the shape is not that of the network, which is said later.
        let heads = interleaved.filter(|head| rows.is_multiple_of(*head));
        let row = match heads {
            Some(_) => info.shape[1..].iter().product(),
            None => info.shape[info.shape.len() - 1],
        };
        if !row.is_multiple_of(info.kind.elements) {
            return Err(file.damaged(format!(
                "`{}` is stored as {}, whose blocks are longer than its rows",
                info.name, info.kind.name
            )));
        }
        Ok(Self {
            file,
            start: info.start,
            kind: info.kind,
            shape: info.shape.clone(),
            row,
            heads: heads.unwrap_or(1),
        })
    }

    /// The values, row-major.
    pub(super) fn values(&self) -> Result<(Vec<f32>, usize), WeightsError> {
        let mut values = vec![0.0; self.shape.iter().product()];
        if values.is_empty() {
            return Ok((values, 0));
        }
        let bytes_of_row = self.row / self.kind.elements * self.kind.bytes;
        let bytes_of_head = bytes_of_row * self.heads;
        let heads = (PIECE / bytes_of_head).max(1);
        let pieces = values
            .par_chunks_mut(heads * self.heads * self.row)
            .enumerate();
        let bad = pieces.map(|(i, values)| {
            let start = self.start + (i * heads * bytes_of_head) as u64;
            let length = values.len() / self.row * bytes_of_row;
            let blocks = self.file.bytes(start, length as u64)?;
            let rows = values.chunks_exact_mut(self.row).enumerate();
            rows.for_each(|(row, values)| {
                let from = self.place(row) * bytes_of_row;
                (self.kind.decode)(&blocks[from..from + bytes_of_row], values);
            });
            Ok(values.iter().filter(|value| !value.is_finite()).count())
        });
        let bad = bad.try_reduce(|| 0, |a, b| Ok(a + b))?;
        Ok((values, bad))
    }

    /// Where the file has the row `row`.
    fn place(&self, row: usize) -> usize {
        let (head, row) = (row / self.heads, row % self.heads);
        let half = self.heads.div_ceil(2);
        head * self.heads + row % half * 2 + row / half
    }
}

impl Values for Blocks {
    fn read(&self) -> Result<(TensorData, usize), WeightsError> {
        let (values, bad) = self.values()?;
        Ok((TensorData::new(values, self.shape.clone()), bad))
    }
}
