//! Linear layers on the CubeCL backends. On CUDA they use cuBLASLt, if it is installed and supports the operands;
//! otherwise they use the kernels of [`tiled`](super::tiled), and a kernel for the gradient of the bias.
//!
//! # Burn's matmul here
//!
//! Burn's matmul is used only for what `tiled` does not support: f64, and matrices without elements. cubek-matmul 0.2.0
//! has double-buffered kernels that read beyond the contracted axis if its number of stages is odd, and silently give
//! wrong results. Only autotuning selects them. Without Burn's feature `autotune`, which this workspace does not
//! enable, a single-buffered kernel is used, or a simple one where that does not fit; both are correct for every
//! contracted size. On CUDA, Burn's matmul rounds f32 to TF32, which neither cuBLASLt nor `tiled` does.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::{Gradients, Linear, one_dtype, reference, tiled};
use crate::cube::column_sums::column_sums;
use crate::cube::{computes_in_f32, inner, is_cuda, tensor};

impl<R, F, I, T> Linear for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        Layer::new(x, weight, bias).forward()
    }

    fn linear_gelu(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let layer = Layer {
            gelu: true,
            ..Layer::new(x, weight, bias)
        };
        layer.forward()
    }

    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let layer = Layer {
            onto: Some(inner(residual)),
            ..Layer::new(x, weight, bias)
        };
        layer.forward()
    }

    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> Gradients<Self> {
        backward(x, weight, dy, wanted)
    }
}

/// A layer and what is done with its output.
pub(super) struct Layer<R: CubeRuntime> {
    /// `[t, i]`.
    pub x: CubeTensor<R>,
    /// `[o, i]`.
    pub weight: CubeTensor<R>,
    /// `[o]`.
    pub bias: Option<CubeTensor<R>>,
    /// `[t, o]`, which is added, and whose memory the output takes where nothing else holds it.
    pub onto: Option<CubeTensor<R>>,
    /// Whether `gelu_new` is applied; not together with `onto`.
    pub gelu: bool,
}

impl<R: CubeRuntime> Layer<R> {
    /// The layer alone.
    fn new<B>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Self
    where
        B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    {
        Self {
            x: inner(x),
            weight: inner(weight),
            bias: bias.map(inner),
            onto: None,
            gelu: false,
        }
    }

    /// `[t, o]`.
    fn forward<B>(mut self) -> Tensor<B, 2>
    where
        B: Linear<FloatTensorPrimitive = CubeTensor<R>>,
    {
        if let Some(y) = self.by_library().or_else(|| self.in_tiles()) {
            return tensor(y);
        }
        // One thing after the other.
        if let Some(onto) = self.onto.take() {
            return tensor::<R, B, 2>(onto) + self.forward();
        }
        if self.gelu {
            self.gelu = false;
            return B::gelu_new_forward(self.forward());
        }
        let (x, weight, bias) = (self.x, self.weight, self.bias);
        reference::forward(tensor(x), tensor(weight), bias.map(tensor))
    }

    /// On CUDA only what the library does not take as a whole.
    fn in_tiles(&self) -> Option<CubeTensor<R>> {
        if is_cuda::<R>() && self.gelu {
            // The library has the product, and a kernel the GELU.
            return None;
        }
        tiled::forward(self)
    }

    #[cfg(feature = "cuda")]
    fn by_library(&self) -> Option<CubeTensor<R>> {
        super::cublaslt::forward(self)
    }

    #[cfg(not(feature = "cuda"))]
    fn by_library(&self) -> Option<CubeTensor<R>> {
        None
    }
}

/// See [`Linear::linear_backward`].
fn backward<R, B>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    dy: Tensor<B, 2>,
    wanted: [bool; 3],
) -> Gradients<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    one_dtype("linear", &x, dy.dtype());
    let (x, weight, dy) = (inner(x), inner(weight), inner(dy));
    let [mut dx, mut dweight, mut dbias] = by_library(&x, &weight, &dy, wanted);
    if wanted[0] && dx.is_none() {
        dx = tiled::input_gradient(&weight, &dy);
    }
    if wanted[1] && dweight.is_none() {
        dweight = tiled::weight_gradient(&x, &dy);
    }
    let [t, o]: [usize; 2] = dy.meta.shape().dims();
    let summed = computes_in_f32(dy.dtype) && t > 0 && o > 0;
    if wanted[2] && dbias.is_none() && summed {
        dbias = Some(column_sums(dy.clone(), dy.dtype));
    }
    let left = [
        wanted[0] && dx.is_none(),
        wanted[1] && dweight.is_none(),
        wanted[2] && dbias.is_none(),
    ];
    let rest = reference::backward::<B>(tensor(x), tensor(weight), tensor(dy), left);
    (
        dx.map(tensor).or(rest.0),
        dweight.map(tensor).or(rest.1),
        dbias.map(tensor).or(rest.2),
    )
}

#[cfg(feature = "cuda")]
use super::cublaslt::backward as by_library;

#[cfg(not(feature = "cuda"))]
fn by_library<R: CubeRuntime>(
    _x: &CubeTensor<R>,
    _weight: &CubeTensor<R>,
    _dy: &CubeTensor<R>,
    _wanted: [bool; 3],
) -> [Option<CubeTensor<R>>; 3] {
    [None, None, None]
}
