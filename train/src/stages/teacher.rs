//! The teacher's part of knowledge distillation, without a student.

use burn::tensor::{Int, Tensor};
use kernels::{KernelBackend, likeliest};
use model::Phi;

use super::head;
use crate::teacher_cache::TopK;

/// Computes only the teacher's part of knowledge distillation: its logits for `ids [b, l]`, block by block as in that
/// stage. The logits are dropped.
pub fn teacher_alone<B: KernelBackend>(teacher: &Phi<B>, ids: Tensor<B, 2, Int>) {
    let features = teacher.features(ids);
    let [b, l, _] = features.dims();
    let block = head::block(b * l, teacher.vocab_size(), features.dtype());
    head::forward(&teacher.head(), features, block, |_, logits| {
        drop(logits);
    });
}

/// The same, but keeps the `k` likeliest ids of each token.
pub(crate) fn top_of_teacher<B: KernelBackend>(
    teacher: &Phi<B>,
    ids: Tensor<B, 2, Int>,
    k: usize,
) -> TopK {
    let (features, v) = (teacher.features(ids), teacher.vocab_size());
    // All work is queued before the first result is waited for.
    let mut blocks = vec![];
    let block = head::block_in_f32(v);
    head::forward(&teacher.head(), features, block, |_, logits_nv| {
        blocks.push(likeliest(logits_nv, k));
    });
    let mut all = TopK::default();
    for block in blocks {
        all.append(TopK::read(block));
    }
    all
}
