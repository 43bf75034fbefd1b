//! The bytes of a row, and their decoded form.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use half::f16;
use kernels::TopClasses;

use super::top_k::log_sum;
use super::{Manifest, StoredDtype, TopK};

impl Manifest {
    /// Appends row `row` of `top` to `bytes`.
    pub(super) fn encode(&self, top: &TopK, row: usize, bytes: &mut Vec<u8>) {
        let l = self.key.context;
        for id in &top.ids[row * l * self.k..][..l * self.k] {
            // In little-endian order, the bytes that are left out for a small id are the last ones.
            bytes.extend(&id.to_le_bytes()[..self.id_bytes]);
        }
        for value in &top.log_q[row * l * self.k..][..l * self.k] {
            match self.dtype {
                StoredDtype::F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
                StoredDtype::F32 => bytes.extend(value.to_le_bytes()),
            }
        }
        for rest in &top.log_rest[row * l..][..l] {
            bytes.extend(rest.to_le_bytes());
        }
    }

    /// Decodes the `bytes` of a row and appends them to `to`; for each token, only the first `to.k` ids. The error
    /// names what is wrong.
    pub(super) fn decode(
        &self,
        bytes: &[u8],
        to: &mut CachedPredictions,
    ) -> Result<(), &'static str> {
        let (l, k) = (self.key.context, self.k);
        let (ids, rest) = bytes.split_at(l * k * self.id_bytes);
        let (values, rests) = rest.split_at(l * k * self.dtype.bytes());
        let ids = ids.chunks_exact(self.id_bytes).map(|bytes| {
            let mut id = [0; 4];
            id[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(id)
        });
        let ids: Vec<u32> = ids.collect();
        let values: Vec<f32> = match self.dtype {
            StoredDtype::F16 => (values.as_chunks().0.iter())
                .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
                .collect(),
            StoredDtype::F32 => (values.as_chunks().0.iter())
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
        };
        let rests = rests.as_chunks().0.iter();
        let rests = rests.map(|bytes| f32::from_le_bytes(*bytes));
        let tokens = ids.chunks_exact(k).zip(values.chunks_exact(k)).zip(rests);
        for ((ids, values), rest) in tokens {
            if ids.iter().any(|&id| id as usize >= self.key.vocab_size) {
                return Err("an id that is outside the vocabulary");
            }
            if !values.iter().all(|value| value.is_finite()) || !rest.is_finite() {
                return Err("a logarithm that is not finite");
            }
            let (own, others) = values.split_at(to.k);
            to.ids.extend(ids[..to.k].iter().map(|&id| id as i32));
            to.log_q.extend(own);
            to.log_rest.push(if others.is_empty() {
                rest
            } else if k < self.key.vocab_size {
                log_sum(others.iter().copied().chain([rest]))
            } else {
                log_sum(others.iter().copied())
            });
        }
        to.rows += 1;
        Ok(())
    }
}

/// A teacher's predictions for some rows, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedPredictions {
    pub(super) ids: Vec<i32>,
    pub(super) log_q: Vec<f32>,
    pub(super) log_rest: Vec<f32>,
    pub(super) rows: usize,
    pub(super) context: usize,
    /// The number of ids for each token.
    pub(super) k: usize,
    pub(super) vocab_size: usize,
}

impl CachedPredictions {
    /// Predictions without rows, with `k` ids a token.
    pub(super) fn new(manifest: &Manifest, k: usize) -> Self {
        Self {
            ids: vec![],
            log_q: vec![],
            log_rest: vec![],
            rows: 0,
            context: manifest.key.context,
            k,
            vocab_size: manifest.key.vocab_size,
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The predictions for all `t` tokens of `rows`, as tensors `[t, k]` and `[t, 1]`.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn classes<B: Backend>(&self, rows: Range<usize>, device: &B::Device) -> TopClasses<B> {
        let tokens = rows.start * self.context..rows.end * self.context;
        let (t, k) = (tokens.len(), self.k);
        let values = tokens.start * k..tokens.end * k;
        let ids = TensorData::new(self.ids[values.clone()].to_vec(), [t, k]);
        let log_q = TensorData::new(self.log_q[values].to_vec(), [t, k]);
        let log_rest = TensorData::new(self.log_rest[tokens].to_vec(), [t, 1]);
        TopClasses {
            ids: Tensor::<B, 2, Int>::from_data(ids, device),
            log_q: Tensor::from_data(log_q, device),
            log_rest: Tensor::from_data(log_rest, device),
        }
    }

    /// The mean entropy of the classes over the tokens of the first `rows`, in nats: the least cross-entropy that a
    /// student can have.
    pub fn entropy(&self, rows: usize) -> f64 {
        let tokens = rows.min(self.rows) * self.context;
        let part = |log: f32| {
            let log = f64::from(log);
            -log.exp() * log
        };
        let of_top: f64 = self.log_q[..tokens * self.k]
            .iter()
            .map(|&log| part(log))
            .sum();
        let of_rest: f64 = if self.k < self.vocab_size {
            self.log_rest[..tokens].iter().map(|&log| part(log)).sum()
        } else {
            0.0
        };
        (of_top + of_rest) / tokens.max(1) as f64
    }
}
