//! MOHAWK's three losses (arXiv 2408.10189, section 4), each for one layer or for the logits.
//!
//! The losses of stages 1 and 2 are sums over layers. Every student layer reads the teacher's hidden state, so the
//! layers are independent, and the caller adds up the losses of the layers. As published, norms are not squared. If a
//! distance is zero, its gradient is zero here (the derivative of the square root is undefined there).

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;

pub use kernels::{DistillationWeights, distillation_loss};

use crate::precision::widen;

/// Stage 1: the mean over batch and heads of `||student - teacher||_F`, for transfer and attention
/// matrices `[b, h, l, l]`, as one element. In f32 for half-precision input.
///
/// This is the plain form, for tests and tools. Training takes [`kernels::mixing_distance`], which is given
/// the factors of the matrices and need not hold them.
///
/// # Panics
/// If the shapes differ.
pub fn matrix_orientation_loss<B: Backend>(
    transfer_bhll: Tensor<B, 4>,
    attention_bhll: Tensor<B, 4>,
) -> Tensor<B, 1> {
    let [b, h, l, m] = transfer_bhll.dims();
    assert_eq!(
        attention_bhll.dims(),
        [b, h, l, m],
        "matrix_orientation_loss: student and teacher must have as many heads and tokens"
    );
    let difference = widen(transfer_bhll) - widen(attention_bhll);
    mean_of_row_norms(difference.reshape([b * h, l * m]))
}

/// Stage 2: the mean over tokens of `||student - teacher||_2`, for mixer outputs or block outputs
/// `[b, l, d]`, as one element. In f32 for half-precision input. Differentiable in the student's alone.
///
/// # Panics
/// If the shapes differ.
pub fn hidden_state_loss<B: KernelBackend>(
    student_bld: Tensor<B, 3>,
    teacher_bld: Tensor<B, 3>,
) -> Tensor<B, 1> {
    let [b, l, d] = student_bld.dims();
    assert_eq!(
        teacher_bld.dims(),
        [b, l, d],
        "hidden_state_loss: student and teacher must have the same shape"
    );
    kernels::rows_distance(
        student_bld.reshape([b * l, d]),
        teacher_bld.reshape([b * l, d]),
    )
}

/// The mean over rows of each row's L2 norm, with gradient zero where a row is zero.
fn mean_of_row_norms<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 1> {
    let squares = rows.powi_scalar(2).sum_dim(1);
    let zero = squares.clone().equal_elem(0.0);
    squares
        .mask_fill(zero.clone(), 1.0)
        .sqrt()
        .mask_fill(zero, 0.0)
        .mean()
}
