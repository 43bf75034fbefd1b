//! Code that several ops share on Burn's `Flex` CPU backend. There the ops' `flex.rs` work on plain f32 slices,
//! vectorised and on all cores. Sums over tokens are split into blocks of a fixed size and added in order, so the
//! results do not depend on the number of threads.

pub(crate) mod math;
pub(crate) mod products;

use std::ops::Deref;

use burn::tensor::{Bytes, DType, Int, Shape, Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use crate::documents::DocumentStarts;

/// The values of a tensor as one contiguous slice. They are copied only if the tensor is not contiguous.
pub(crate) struct Values(FlexTensor);

impl Values {
    pub(crate) fn of<const D: usize>(x: Tensor<Flex, D>) -> Self {
        let x = x.into_primitive().tensor();
        if x.as_slice::<f32>().is_some() {
            Self(x)
        } else {
            Self(x.to_contiguous())
        }
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_slice().expect("an f32 tensor made contiguous")
    }
}

/// The values of an integer tensor, whatever its width.
pub(crate) fn integers<const D: usize>(x: Tensor<Flex, D, Int>) -> Vec<i64> {
    x.into_data().iter::<i64>().collect()
}

/// The starts of documents, `[b, l]`, if there are documents.
pub(crate) fn starts(documents: Option<DocumentStarts<Flex>>) -> Option<Vec<usize>> {
    let starts = integers(documents?.starts());
    Some(starts.into_iter().map(|start| start as usize).collect())
}

/// A tensor that takes over `values`, in rows.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    let layout = Layout::contiguous(Shape::from(shape));
    let primitive = FlexTensor::new(Bytes::from_elems(values), layout, DType::F32);
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Rows that one task handles: enough that starting it costs nothing beside its work, few enough
/// to share among cores.
pub(crate) fn rows_per_task(row: usize) -> usize {
    (16_384 / row.max(1)).clamp(1, 1024)
}

/// Heads' `[l, d]` blocks, `[b, k]` of them in order, to `[b, l, k, d]`.
pub(crate) fn interleave(blocks: &[&[f32]], b: usize, l: usize, d: usize) -> Vec<f32> {
    let k = blocks.len() / b;
    let mut out = vec![0.0; b * l * k * d];
    let tokens = out.par_chunks_mut(k * d).enumerate();
    tokens
        .with_min_len(rows_per_task(k * d))
        .for_each(|(token, out)| {
            let (batch, t) = (token / l, token % l);
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                out.copy_from_slice(&blocks[batch * k + head][t * d..][..d]);
            }
        });
    out
}

/// Whether the loops take `x`; the reference computes with every other dtype.
pub(crate) fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}
