//! What the ops work on, as tensors on the device.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::decode::projections::Form;

/// A weight on the device.
pub(super) struct Weight<R: CubeRuntime> {
    /// Floats, or several numbers an element.
    pub(super) values: CubeTensor<R>,
    pub(super) scales: Scales<R>,
}

/// The scales of a weight.
pub(super) enum Scales<R: CubeRuntime> {
    /// Floats have none.
    None,
    /// Of 8-bit numbers, f32.
    OfRows(CubeTensor<R>),
    /// Of 4-bit numbers, two f16 numbers an element.
    OfGroups(CubeTensor<R>),
}

impl<R: CubeRuntime> Weight<R> {
    /// What its numbers are stored as.
    pub(super) fn form(&self) -> Form {
        match self.scales {
            Scales::None => Form::Float,
            Scales::OfRows(_) => Form::Int8,
            Scales::OfGroups(_) => Form::Int4,
        }
    }
}

/// A projection's tensors.
pub(super) struct Projection<R: CubeRuntime> {
    pub(super) weight: Weight<R>,
    pub(super) bias: Option<CubeTensor<R>>,
}

/// A normalisation's tensors.
pub(super) struct Normalisation<R: CubeRuntime> {
    pub(super) gamma: CubeTensor<R>,
    pub(super) beta: Option<CubeTensor<R>>,
    pub(super) epsilon: f64,
}

/// What a weight is multiplied with.
pub(super) struct Input<R: CubeRuntime> {
    pub(super) u: CubeTensor<R>,
    /// The other factor, where there are two.
    pub(super) gate: Option<CubeTensor<R>>,
}
