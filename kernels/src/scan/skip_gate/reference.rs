//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{SkipGateGradients, SkipGateInputs};
use crate::dtype::{narrow, sigmoid, widen};

impl<B: Backend> SkipGateInputs<B> {
    /// All in f32 where they are narrower.
    fn widened(self) -> Self {
        Self {
            y: widen(self.y),
            x: widen(self.x),
            d: widen(self.d),
            z: widen(self.z),
            z_bias: self.z_bias.map(widen),
        }
    }
}

fn gate_input<B: Backend>(z: Tensor<B, 3>, z_bias: Option<Tensor<B, 1>>) -> Tensor<B, 3> {
    match z_bias {
        Some(z_bias) => z + z_bias.unsqueeze(),
        None => z,
    }
}

/// See [`skip_gate`](super::skip_gate).
pub fn forward<B: Backend>(inputs: SkipGateInputs<B>) -> Tensor<B, 3> {
    let dtype = inputs.x.dtype();
    let SkipGateInputs { y, x, d, z, z_bias } = inputs.widened();
    let [b, l, h, p] = y.dims();
    let skipped = (y + x * d.reshape([1, 1, h, 1])).reshape([b, l, h * p]);
    let z = gate_input(z, z_bias);
    narrow(skipped * z.clone() * sigmoid(z), dtype)
}

/// With `s = y + d x`, `v = z + z_bias`, `silu(v) = v sigmoid(v)`,
/// `silu'(v) = sigmoid(v) (1 + v (1 - sigmoid(v)))`.
pub fn backward<B: Backend>(inputs: SkipGateInputs<B>, dout: Tensor<B, 3>) -> SkipGateGradients<B> {
    let (dtype, parameter_dtype) = (inputs.x.dtype(), inputs.d.dtype());
    let SkipGateInputs { y, x, d, z, z_bias } = inputs.widened();
    let dout = widen(dout);
    let [b, l, h, p] = y.dims();
    let d = d.reshape([1, 1, h, 1]);
    let skipped = (y + x.clone() * d.clone()).reshape([b, l, h * p]);
    let v = gate_input(z, z_bias);
    let sigmoid = sigmoid(v.clone());
    let dy = (dout.clone() * v.clone() * sigmoid.clone()).reshape([b, l, h, p]);
    let slope = (v * (-sigmoid.clone() + 1.0) + 1.0) * sigmoid;
    let dz = dout * skipped * slope;
    let dd = (dy.clone() * x).sum_dim(3).sum_dim(1).sum_dim(0);
    let dz_bias = dz.clone().sum_dim(1).sum_dim(0);
    SkipGateGradients {
        d: narrow(dd.reshape([h]), parameter_dtype),
        x: narrow(dy.clone() * d, dtype),
        y: narrow(dy, dtype),
        z_bias: narrow(dz_bias.reshape([h * p]), parameter_dtype),
        z: narrow(dz, dtype),
    }
}
