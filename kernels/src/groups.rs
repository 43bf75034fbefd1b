//! Heads that share a group's tensors: B and C of the scan, keys and values of attention.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `[b, l, g, n]` to `[b, l, h, n]`: head `i` gets group `i / (h / g)`.
pub(crate) fn to_heads<B: Backend>(x: Tensor<B, 4>, h: usize) -> Tensor<B, 4> {
    let [b, l, g, n] = x.dims();
    if g == h {
        return x;
    }
    x.reshape([b, l, g, 1, n])
        .expand([b, l, g, h / g, n])
        .reshape([b, l, h, n])
}

/// The adjoint of [`to_heads`]: the sum over the heads of each group.
pub(crate) fn to_groups<B: Backend>(x: Tensor<B, 4>, g: usize) -> Tensor<B, 4> {
    let [b, l, h, n] = x.dims();
    if g == h {
        return x;
    }
    x.reshape([b, l, g, h / g, n])
        .sum_dim(3)
        .reshape([b, l, g, n])
}
