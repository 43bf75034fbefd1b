//! The layers that everything is made of, with parameters as PyTorch lays them out, so that files
//! need no transposition in either direction.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use kernels::KernelBackend;
use kernels::decode::projections::{Activation, Form, Normalisation, Projection, Weight};

use crate::init::{Fill, Init};
use crate::precision::to_dtype;

/// `y = x W^T + b`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_out, d_in]`; a placeholder of one element if the weight is packed in 8 or 4 bits.
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The packed weight, in 8 or 4 bits, for inference.
    packed: Option<Packed<B>>,
}

/// A packed weight.
#[derive(Module, Debug)]
enum Packed<B: Backend> {
    /// See [`Weight::Int8`].
    Int8(Int8<B>),
    /// See [`Weight::Int4`].
    Int4(Int4<B>),
}

#[derive(Module, Debug)]
struct Int8<B: Backend> {
    packed: Param<Tensor<B, 2, Int>>,
    scales: Param<Tensor<B, 1>>,
}

#[derive(Module, Debug)]
struct Int4<B: Backend> {
    packed: Param<Tensor<B, 2, Int>>,
    scales: Param<Tensor<B, 1, Int>>,
}

impl<B: Backend> Packed<B> {
    fn stored(&self) -> Weight<B> {
        match self {
            Self::Int8(Int8 { packed, scales }) => Weight::Int8 {
                packed: packed.val(),
                scales: scales.val(),
            },
            Self::Int4(Int4 { packed, scales }) => Weight::Int4 {
                packed: packed.val(),
                scales: scales.val(),
            },
        }
    }
}

impl<B: Backend> Linear<B> {
    pub(crate) fn new(
        init: &mut Init<B>,
        [d_out, d_in]: [usize; 2],
        weight: Fill,
        bias: Option<Fill>,
    ) -> Self {
        Self {
            weight: init.parameter([d_out, d_in], weight),
            bias: bias.map(|fill| init.parameter([d_out], fill)),
            packed: None,
        }
    }

    /// A layer with this weight and without a bias.
    pub(crate) fn of(weight: Param<Tensor<B, 2>>) -> Self {
        Self {
            weight,
            bias: None,
            packed: None,
        }
    }

    /// A layer with a packed weight and without a bias, in a network with parameters of `dtype`.
    ///
    /// # Panics
    /// If the weight is in floats.
    pub(crate) fn of_packed(weight: Weight<B>, dtype: DType) -> Self {
        let (Weight::Int8 { packed, .. } | Weight::Int4 { packed, .. }) = &weight else {
            panic!("the weight is in floats");
        };
        let none = Tensor::zeros([1, 1], (&packed.device(), dtype));
        let mut linear = Self::of(Param::initialized(ParamId::new(), none));
        linear.set_packed(weight, dtype);
        linear
    }

    /// With small normal weights and a bias of zeros, or none: as Hugging Face starts its models.
    pub(crate) fn normal(init: &mut Init<B>, shape: [usize; 2], bias: bool) -> Self {
        let bias = bias.then(|| Fill::constant(0.0));
        Self::new(init, shape, Fill::small_normal(), bias)
    }

    /// Converts the weight to `form`, if its rows allow it. A packed weight can no longer be trained.
    pub(crate) fn pack(&mut self, form: Form) {
        if self.packed.is_none() {
            let weight = self.weight.val();
            let dtype = weight.dtype();
            self.set_packed(Weight::Float(weight).to_form(form), dtype);
        }
    }

    /// Replaces the weight by `weight`, if that is packed. The placeholder gets `dtype`, which is the dtype of the old
    /// weight.
    pub(crate) fn set_packed(&mut self, weight: Weight<B>, dtype: DType) {
        fn own<B: Backend, const D: usize>(x: Tensor<B, D, Int>) -> Param<Tensor<B, D, Int>> {
            Param::initialized(ParamId::new(), x)
        }
        let (device, packed) = match weight {
            Weight::Float(_) => return,
            Weight::Int8 { packed, scales } => {
                let device = packed.device();
                let scales = Param::initialized(ParamId::new(), scales);
                let packed = own(packed);
                (device, Packed::Int8(Int8 { packed, scales }))
            }
            Weight::Int4 { packed, scales } => {
                let device = packed.device();
                let (packed, scales) = (own(packed), own(scales));
                (device, Packed::Int4(Int4 { packed, scales }))
            }
        };
        self.packed = Some(packed);
        // The placeholder gets a new id: a tied head shares the old one with the embedding, which keeps its weight.
        let one = Tensor::zeros([1, 1], (&device, dtype));
        self.weight = Param::initialized(ParamId::new(), one);
    }

    /// The weight, where it is in bits.
    pub(crate) fn packed(&self) -> Option<Weight<B>> {
        self.packed.as_ref().map(Packed::stored)
    }

    /// Joins `layers` to one layer, whose output is the concatenation of theirs. The weights of `layers` become views
    /// of its rows, in the same memory if the backend can do that. Returns `None` and changes nothing if a weight is
    /// packed, or if only some layers have a bias.
    pub(crate) fn stack<const N: usize>(layers: [&mut Self; N]) -> Option<Self> {
        let with_bias = layers.iter().filter(|layer| layer.bias.is_some()).count();
        if layers.iter().any(|layer| layer.packed.is_some()) || ![0, N].contains(&with_bias) {
            return None;
        }
        let weights = layers.iter().map(|layer| layer.weight.val()).collect();
        let biases: Option<Vec<_>> = layers
            .iter()
            .map(|layer| Some(layer.bias.as_ref()?.val()))
            .collect();
        let own = |x| Param::initialized(ParamId::new(), x);
        let stacked = Self {
            weight: Param::initialized(ParamId::new(), Tensor::cat(weights, 0)),
            bias: biases.map(|biases| own(Tensor::cat(biases, 0))),
            packed: None,
        };
        let mut start = 0;
        for layer in layers {
            let n = layer.d_out();
            let rows = stacked.weight.val().narrow(0, start, n);
            layer.weight = Param::initialized(layer.weight.id, rows);
            start += n;
        }
        Some(stacked)
    }

    fn stored(&self) -> Weight<B> {
        match &self.packed {
            Some(packed) => packed.stored(),
            None => Weight::Float(self.weight.val()),
        }
    }

    /// What the weight is stored as.
    pub(crate) fn form(&self) -> Form {
        match &self.packed {
            Some(Packed::Int8(_)) => Form::Int8,
            Some(Packed::Int4(_)) => Form::Int4,
            None => Form::Float,
        }
    }

    /// Rows of the weight.
    pub(crate) fn d_out(&self) -> usize {
        match &self.packed {
            Some(Packed::Int8(int8)) => int8.packed.lazy_shape()[0],
            Some(Packed::Int4(int4)) => int4.packed.lazy_shape()[0],
            None => self.weight.lazy_shape()[0],
        }
    }

    /// Bytes that the weight takes.
    pub(crate) fn bytes(&self) -> usize {
        self.stored().bytes()
    }
}

impl<B: KernelBackend> Linear<B> {
    /// `x [.., d_in]` to `[.., d_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        if self.multiplies_packed() {
            return kernels::decode::projections::linear(x, self.projection());
        }
        let bias = self.bias.as_ref().map(Param::val);
        let weight = self.weight_for(&x);
        kernels::linear(x, weight, bias)
    }

    /// Whether a product with many vectors should use the packed weight directly, and not the weight as floats.
    fn multiplies_packed(&self) -> bool {
        self.packed.is_some() && B::multiplies_packed()
    }

    /// [`forward`](Self::forward) with its columns padded with zeros to a multiple of eight, so that rows in half
    /// precision are aligned to 16 bytes: `x [.., d_in]` to `[.., d_out rounded up to a multiple of 8]`.
    pub(crate) fn forward_aligned<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        const COLUMNS: usize = 8;
        let missing = self.d_out().next_multiple_of(COLUMNS) - self.d_out();
        if missing == 0 || self.multiplies_packed() {
            return self.forward(x);
        }
        let weight = self.weight_for(&x);
        let [d_out, d_in] = weight.dims();
        let rows = d_out + missing;
        let weight = kernels::extend_columns(weight.reshape([1, 1, d_out * d_in]), rows * d_in);
        let bias = (self.bias.as_ref())
            .map(|bias| kernels::extend_columns(bias.val().reshape([1, 1, d_out]), rows))
            .map(|bias| bias.reshape([rows]));
        kernels::linear(x, weight.reshape([rows, d_in]), bias)
    }

    /// `gelu_new` of what [`forward`](Self::forward) gives.
    pub fn forward_gelu<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        if self.multiplies_packed() {
            return kernels::gelu_new(self.forward(x));
        }
        let bias = self.bias.as_ref().map(Param::val);
        let weight = self.weight_for(&x);
        kernels::linear_gelu(x, weight, bias)
    }

    /// `residual [.., d_out]` plus what [`forward`](Self::forward) gives.
    pub fn forward_onto<const D: usize>(
        &self,
        residual: Tensor<B, D>,
        x: Tensor<B, D>,
    ) -> Tensor<B, D> {
        if self.multiplies_packed() {
            return residual + self.forward(x);
        }
        let bias = self.bias.as_ref().map(Param::val);
        let weight = self.weight_for(&x);
        kernels::linear_onto(residual, x, weight, bias)
    }

    /// For the few vectors of a decoding step.
    pub(crate) fn projection(&self) -> Projection<B> {
        Projection {
            weight: self.stored(),
            bias: self.bias.as_ref().map(Param::val),
        }
    }

    /// [`forward`](Self::forward) for the few vectors of a decoding step, `x [b, d_in]` in f32 or wider,
    /// whatever the dtype of the weight.
    pub(crate) fn forward_step(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [b, _] = x.dims();
        let nothing = Tensor::zeros([b, self.d_out()], (&x.device(), x.dtype()));
        kernels::decode::projections::out_of(nothing, vec![(x.into(), self.projection())])
    }

    /// `x [.., d_in]` times `n` rows of the weight from row `start`: `[.., n]`.
    ///
    /// For the pieces of one wide projection where gradients are needed: the backward pass of a
    /// slice writes zeros as large as what was sliced, and the weight is smaller than the output.
    pub fn forward_rows<const D: usize>(
        &self,
        x: Tensor<B, D>,
        start: usize,
        n: usize,
    ) -> Tensor<B, D> {
        let bias = self
            .bias
            .as_ref()
            .map(|bias| bias.val().narrow(0, start, n));
        let weight = self.weight_for(&x);
        kernels::linear(x, weight.narrow(0, start, n), bias)
    }

    /// The weight as floats: as it is stored, or, if it is packed, converted to the dtype of `x`.
    fn weight_for<const D: usize>(&self, x: &Tensor<B, D>) -> Tensor<B, 2> {
        match &self.packed {
            Some(packed) => packed.stored().to_float(x.dtype()),
            None => self.weight.val(),
        }
    }
}

/// How a network normalises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    /// The kind of normalisation.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub epsilon: f64,
}

/// The kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
    LayerNorm,
    /// `x / sqrt(mean of squares + epsilon) * weight`.
    RmsNorm,
}

/// Normalisation over the last dimension: a LayerNorm where there is a bias, an RMSNorm where there is none.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// `[d]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[d]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f64,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn new(init: &mut Init<B>, d: usize, config: NormConfig) -> Self {
        let has_bias = config.kind == NormKind::LayerNorm;
        Self {
            weight: init.parameter([d], Fill::constant(1.0)),
            bias: has_bias.then(|| init.parameter([d], Fill::constant(0.0))),
            epsilon: config.epsilon,
        }
    }

    /// For the few vectors of a decoding step.
    fn normalisation(&self) -> Normalisation<B> {
        Normalisation {
            gamma: self.weight.val(),
            beta: self.bias.as_ref().map(Param::val),
            epsilon: self.epsilon,
        }
    }
}

impl<B: KernelBackend> Norm<B> {
    /// `x [.., d]` normalised, in the same shape. In f32 inside for half-precision input.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match &self.bias {
            Some(bias) => kernels::layer_norm(x, self.weight.val(), bias.val(), self.epsilon),
            None => kernels::rms_norm(x, self.weight.val(), self.epsilon),
        }
    }

    /// The projections of a decoding step: `x [b, d]`, normalised, through each of `linears`, `[b, d_out]` each.
    pub(crate) fn project(
        &self,
        x: Tensor<B, 2>,
        linears: Vec<(&Linear<B>, Activation)>,
    ) -> Vec<Tensor<B, 2>> {
        let projections = linears.into_iter();
        let projections = projections.map(|(linear, act)| (linear.projection(), act));
        kernels::decode::projections::into(x, self.normalisation(), projections.collect())
    }

    /// The last projection of a step: `x [b, d]`, normalised, through `head`. Later steps do not use the memory of the
    /// output.
    pub(crate) fn project_head(&self, x: Tensor<B, 2>, head: &Linear<B>) -> Tensor<B, 2> {
        kernels::decode::projections::head(x, self.normalisation(), head.projection())
    }

    /// In the dtype of `x`, which in a step is wider than that of the parameters.
    pub(crate) fn rms_norm_of_step(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let weight = to_dtype(self.weight.val(), x.dtype());
        kernels::rms_norm(x, weight, self.epsilon)
    }
}
