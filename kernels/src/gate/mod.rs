//! What follows the scan in the mixer: the skip `D x` and the gate `silu(z + z_bias)`.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// Gradients of [`gated_skip`] to its inputs, each in its input's shape.
#[derive(Debug, Clone)]
pub struct GatedSkipGradients<B: Backend> {
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

/// `(y + d x) * silu(z + z_bias)`: `y`, `x` `[b, l, h, p]`, `d [h]`, `z [b, l, h * p]`,
/// `z_bias [h * p]`, to `[b, l, h * p]`.
///
/// # Panics
/// If the shapes do not fit together as above.
pub fn gated_skip<B: KernelBackend>(
    y: Tensor<B, 4>,
    x: Tensor<B, 4>,
    d: Tensor<B, 1>,
    z: Tensor<B, 3>,
    z_bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    let [b, l, h, p] = y.dims();
    assert_eq!(
        x.dims(),
        [b, l, h, p],
        "gated_skip: x must have the shape of y"
    );
    assert_eq!(d.dims(), [h], "gated_skip: d must have one element a head");
    assert_eq!(
        z.dims(),
        [b, l, h * p],
        "gated_skip: z must be [b, l, h * p]"
    );
    if let Some(z_bias) = &z_bias {
        assert_eq!(
            z_bias.dims(),
            [h * p],
            "gated_skip: z_bias must have h * p elements"
        );
    }
    timed(Kind::Elementwise, || {
        B::gated_skip_forward(y, x, d, z, z_bias)
    })
}
