//! The definition, in tensor operations. `t` is the flattened leading dimensions.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Gradients;
use crate::product::product;

/// `x [t, i]`, `weight [o, i]`, `bias [o]` to `[t, o]`.
pub fn forward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    let y = product(x, weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// `dx = dy W`, `dW = dy^T x`, `dbias = sum of dy over tokens`.
pub fn backward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    dy: Tensor<B, 2>,
    wanted: [bool; 3],
) -> Gradients<B> {
    let [d_out, _] = weight.dims();
    let dx = wanted[0].then(|| product(dy.clone(), weight));
    let dweight = wanted[1].then(|| product(dy.clone().transpose(), x));
    let dbias = wanted[2].then(|| dy.sum_dim(0).reshape([d_out]));
    (dx, dweight, dbias)
}
