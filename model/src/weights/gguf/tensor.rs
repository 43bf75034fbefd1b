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
    rows_of_head: usize,
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
        // Of another number of rows, or of none, the shape is not that of the network, which is said later.
        let rows_of_head = interleaved.filter(|head| rows > 0 && rows.is_multiple_of(*head));
        let row = match rows_of_head {
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
            rows_of_head: rows_of_head.unwrap_or(1),
        })
    }

    /// The values, row-major, and how many of them are NaN or infinite.
    pub(super) fn values(&self) -> Result<(Vec<f32>, usize), WeightsError> {
        let mut values = vec![0.0; self.shape.iter().product()];
        if values.is_empty() {
            return Ok((values, 0));
        }
        let (file, row, rows_of_head, kind) = (&*self.file, self.row, self.rows_of_head, self.kind);
        let bytes_of_row = row / kind.elements * kind.bytes;
        let bytes_of_head = bytes_of_row * rows_of_head;
        let at_once = (PIECE / bytes_of_head).max(1);
        let start = self.start;
        let pieces = values
            .par_chunks_mut(at_once * rows_of_head * row)
            .enumerate();
        let bad = pieces.map(|(i, values)| {
            let start = start + (i * at_once * bytes_of_head) as u64;
            let length = values.len() / row * bytes_of_row;
            let blocks = file.bytes(start, length as u64)?;
            for (i, values) in values.chunks_exact_mut(row).enumerate() {
                let from = place(i, rows_of_head) * bytes_of_row;
                (kind.decode)(&blocks[from..from + bytes_of_row], values);
            }
            Ok(values.iter().filter(|value| !value.is_finite()).count())
        });
        let bad: Result<usize, WeightsError> = bad.try_reduce(|| 0, |a, b| Ok(a + b));
        Ok((values, bad?))
    }
}

/// Where a file whose heads have so many rows, interleaved, has the row `row` of Hugging Face's; with one row in
/// each, where Hugging Face has it.
fn place(row: usize, rows_of_head: usize) -> usize {
    let (head, row) = (row / rows_of_head, row % rows_of_head);
    let half = rows_of_head.div_ceil(2);
    head * rows_of_head + row % half * 2 + row / half
}

impl Values for Blocks {
    fn read(&self) -> Result<(TensorData, usize), WeightsError> {
        let (values, bad) = self.values()?;
        Ok((TensorData::new(values, self.shape.clone()), bad))
    }
}
