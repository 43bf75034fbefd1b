//! The definition, in tensor operations.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Tensor};

use super::Gradients;
use crate::dtype::{narrow, widen};
use crate::groups::{to_groups, to_heads};
use crate::product::product;

/// `[b, t, g, p]` to `[b, h, t, p]`.
fn per_head<B: Backend>(x: Tensor<B, 4>, h: usize) -> Tensor<B, 4> {
    to_heads(x, h).swap_dims(1, 2)
}

/// See [`attention_matrix`](super::attention_matrix).
pub fn matrix<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, l, h, p] = q.dims();
    let t = k.dims()[1];
    let q = q.swap_dims(1, 2) * (1.0 / (p as f64).sqrt());
    let scores = widen(product(q, per_head(k, h).swap_dims(2, 3)));
    let scores = match l {
        1 => scores, // one query, the last position, sees every key
        _ => {
            let future = Tensor::<B, 2, Bool>::tril_mask([l, t], (t - l) as i64, &scores.device());
            let future = future.reshape([1, 1, l, t]).expand([b, h, l, t]);
            scores.mask_fill(future, f32::NEG_INFINITY)
        }
    };
    softmax(scores, 3)
}

/// See [`attention`](super::attention()).
pub fn forward<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    let (h, dtype) = (q.dims()[2], v.dtype());
    let weights = narrow(matrix(q, k), dtype);
    product(weights, per_head(v, h)).swap_dims(1, 2)
}

/// Half-precision inputs are widened, and their products may be TF32 on NVIDIA GPUs: TF32 holds the inputs as they
/// are, and more digits of the weights and their gradients than half precision does.
///
/// With `P` the weights and `dP = dy v^T`: the scores' gradient is `P (dP - sum of P dP)`, row by row.
pub fn backward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    dy: Tensor<B, 4>,
) -> Gradients<B> {
    let ([_, _, h, p], g, dtype) = (q.dims(), k.dims()[2], q.dtype());
    let weights = matrix(q.clone(), k.clone());
    let times = if dtype == DType::F32 {
        product
    } else {
        Tensor::matmul
    };
    let (q, dy) = (widen(q).swap_dims(1, 2), widen(dy).swap_dims(1, 2));
    let (k, v) = (widen(per_head(k, h)), widen(per_head(v, h)));
    let dv = times(weights.clone().swap_dims(2, 3), dy.clone());
    let dweights = times(dy, v.swap_dims(2, 3));
    let along = (weights.clone() * dweights.clone()).sum_dim(3);
    let dscores = weights * (dweights - along) * (1.0 / (p as f64).sqrt());
    let dk = times(dscores.clone().swap_dims(2, 3), q);
    let grouped = |x: Tensor<B, 4>| narrow(to_groups(x.swap_dims(1, 2), g), dtype);
    (
        narrow(times(dscores, k).swap_dims(1, 2), dtype),
        grouped(dk),
        grouped(dv),
    )
}
