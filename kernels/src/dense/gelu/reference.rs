//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `sqrt(2 / pi)`
pub(super) const SCALE: f64 = 0.797_884_560_802_865_4;
/// The cubic term's coefficient.
pub(super) const CUBIC: f64 = 0.044715;

fn tanh_of_inner<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    ((x.clone().powi_scalar(3) * CUBIC + x) * SCALE).tanh()
}

/// `gelu_new` of every element.
pub fn forward<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let t = tanh_of_inner(x.clone());
    x * (t + 1.0) * 0.5
}

/// `dy * (0.5 (1 + t) + 0.5 x (1 - t^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2))`, `t` the tanh above.
pub fn backward<B: Backend>(x: Tensor<B, 2>, dy: Tensor<B, 2>) -> Tensor<B, 2> {
    let t = tanh_of_inner(x.clone());
    let inner_slope = (x.clone().powi_scalar(2) * (3.0 * CUBIC) + 1.0) * SCALE;
    let slope = (t.clone() + 1.0) + x * (-t.powi_scalar(2) + 1.0) * inner_slope;
    dy * slope * 0.5
}
