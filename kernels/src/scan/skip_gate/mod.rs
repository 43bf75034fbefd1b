//! The operations after the scan in the mixer: the skip `D x` and the gate `silu(z + z_bias)`.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

/// Gradients of [`skip_gate`] to its inputs, each in its input's shape.
#[derive(Debug, Clone)]
pub struct SkipGateGradients<B: Backend> {
    /// To the scan's output, `[b, l, h, p]`.
    pub y: Tensor<B, 4>,
    /// To the scan's input, `[b, l, h, p]`.
    pub x: Tensor<B, 4>,
    /// To the skip, `[h]`.
    pub d: Tensor<B, 1>,
    /// To the gate, `[b, l, h * p]`.
    pub z: Tensor<B, 3>,
    /// To the gate's bias, `[h * p]`.
    pub z_bias: Tensor<B, 1>,
}

/// What [`skip_gate`] reads.
#[derive(Debug, Clone)]
pub struct SkipGateInputs<B: Backend> {
    /// The scan's output, `[b, l, h, p]`.
    pub y: Tensor<B, 4>,
    /// The scan's input, `[b, l, h, p]`.
    pub x: Tensor<B, 4>,
    /// The skip, `[h]`.
    pub d: Tensor<B, 1>,
    /// The gate, `[b, l, h * p]`.
    pub z: Tensor<B, 3>,
    /// The gate's bias, `[h * p]`, in the dtype of the skip.
    pub z_bias: Option<Tensor<B, 1>>,
}

/// The op, as backends compute it.
pub trait SkipGate: Backend {
    /// See [`skip_gate`].
    fn skip_gate_forward(inputs: SkipGateInputs<Self>) -> Tensor<Self, 3> {
        reference::forward(inputs)
    }

    /// Gradients of [`SkipGate::skip_gate_forward`] to its inputs, from `dout [b, l, h * p]`.
    fn skip_gate_backward(
        inputs: SkipGateInputs<Self>,
        dout: Tensor<Self, 3>,
    ) -> SkipGateGradients<Self> {
        reference::backward(inputs, dout)
    }
}

by_default!(SkipGate for ndarray);

/// `(y + d x) * silu(z + z_bias)`: `y`, `x` `[b, l, h, p]`, `d [h]`, `z [b, l, h * p]`,
/// `z_bias [h * p]`, to `[b, l, h * p]`.
///
/// # Panics
/// If the shapes do not fit together as above, or some inputs are f64 and others not.
pub fn skip_gate<B: SkipGate>(
    y: Tensor<B, 4>,
    x: Tensor<B, 4>,
    d: Tensor<B, 1>,
    z: Tensor<B, 3>,
    z_bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    let [b, l, h, p] = y.dims();
    let mut dtypes = vec![y.dtype(), x.dtype(), d.dtype(), z.dtype()];
    dtypes.extend(z_bias.as_ref().map(Tensor::dtype));
    assert_one_width("skip_gate", &dtypes);
    assert_eq!(
        x.dims(),
        [b, l, h, p],
        "skip_gate: x must have the shape of y"
    );
    assert_eq!(d.dims(), [h], "skip_gate: d must have one element a head");
    assert_eq!(
        z.dims(),
        [b, l, h * p],
        "skip_gate: z must be [b, l, h * p]"
    );
    if let Some(z_bias) = &z_bias {
        assert_eq!(
            z_bias.dims(),
            [h * p],
            "skip_gate: z_bias must have h * p elements"
        );
    }
    let inputs = SkipGateInputs { y, x, d, z, z_bias };
    timed(Kind::Elementwise, || B::skip_gate_forward(inputs))
}
