//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{SkipGateGradients, SkipGateInputs};
use crate::dtype::sigmoid;

fn gate_input<B: Backend>(z: Tensor<B, 3>, z_bias: Option<Tensor<B, 1>>) -> Tensor<B, 3> {
    match z_bias {
        Some(z_bias) => z + z_bias.unsqueeze(),
        None => z,
    }
}

/// See [`skip_gate`](super::skip_gate).
pub fn forward<B: Backend>(inputs: SkipGateInputs<B>) -> Tensor<B, 3> {
    let SkipGateInputs { y, x, d, z, z_bias } = inputs;
    let [b, l, h, p] = y.dims();
    let skipped = (y + x * d.reshape([1, 1, h, 1])).reshape([b, l, h * p]);
    let z = gate_input(z, z_bias);
    skipped * z.clone() * sigmoid(z)
}

/// With `s = y + d x`, `v = z + z_bias`, `silu(v) = v sigmoid(v)`,
/// `silu'(v) = sigmoid(v) (1 + v (1 - sigmoid(v)))`.
pub fn backward<B: Backend>(inputs: SkipGateInputs<B>, dout: Tensor<B, 3>) -> SkipGateGradients<B> {
    let SkipGateInputs { y, x, d, z, z_bias } = inputs;
    let [b, l, h, p] = y.dims();
    let d = d.reshape([1, 1, h, 1]);
    let skipped = (y + x.clone() * d.clone()).reshape([b, l, h * p]);
    let v = gate_input(z, z_bias);
    let sigmoid = sigmoid(v.clone());
    let dy = (dout.clone() * v.clone() * sigmoid.clone()).reshape([b, l, h, p]);
    let slope = (v * (-sigmoid.clone() + 1.0) + 1.0) * sigmoid;
    let dz = dout * skipped * slope;
    SkipGateGradients {
        d: (dy.clone() * x)
            .sum_dim(3)
            .sum_dim(1)
            .sum_dim(0)
            .reshape([h]),
        x: dy.clone() * d,
        y: dy,
        z_bias: dz.clone().sum_dim(1).sum_dim(0).reshape([h * p]),
        z: dz,
    }
}
