//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dtype::{narrow, sigmoid, widen};

/// `silu(gate) * up` of every element.
pub fn forward<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = gate.dtype();
    let (gate, up) = (widen(gate), widen(up));
    narrow(gate.clone() * sigmoid(gate) * up, dtype)
}

/// With `s = sigmoid(gate)`: `dgate = dy * up * s (1 + gate (1 - s))`, `dup = dy * gate * s`.
pub fn backward<B: Backend>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    dy: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let dtype = gate.dtype();
    let (gate, up, dy) = (widen(gate), widen(up), widen(dy));
    let sigmoid = sigmoid(gate.clone());
    let slope = (gate.clone() * (-sigmoid.clone() + 1.0) + 1.0) * sigmoid.clone();
    let dgate = dy.clone() * up * slope;
    let dup = dy * gate * sigmoid;
    [narrow(dgate, dtype), narrow(dup, dtype)]
}
