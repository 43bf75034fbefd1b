//! Between recorded vectors and tensors, and what every network must do, whatever the backend.

pub mod decoding;
pub mod mohawk;
pub mod student;
pub mod teacher;

use crate::{Goldens, Values, assert_close};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

/// 64-bit arithmetic; files hold 32 bits, of which rounding leaves 6e-8 of each value, and a
/// network's sums a few times that.
pub type Exact = burn_ndarray::NdArray<f64>;
/// Of the largest magnitude in a tensor.
pub const EXACT: f64 = 2e-6;
/// The CPU backend of everyday use, in 32-bit arithmetic.
pub type Fast = burn_flex::Flex;
/// A few hundred roundings of 6e-8 that add up through the layers.
pub const FAST: f64 = 2e-4;

/// A tensor as the goldens' reader gives it.
pub fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Values {
    let data = x.into_data().convert::<f64>();
    let shape = data.shape.to_vec();
    (shape, data.to_vec().expect("floats"))
}

/// A recorded tensor on a device.
pub fn tensor<B: Backend, const D: usize>(
    (shape, values): Values,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Recorded ids `[b, l]` on a device.
pub fn ids<B: Backend>(goldens: &Goldens, key: &str, device: &B::Device) -> Tensor<B, 2, Int> {
    let (shape, values) = goldens.i64(key);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Asserts that `actual` is what `goldens` hold under `key`.
pub fn assert_golden<B: Backend, const D: usize>(
    case: &str,
    goldens: &Goldens,
    key: &str,
    actual: Tensor<B, D>,
    tolerance: f64,
) {
    let name = format!("{case}: {key}");
    assert_close(&name, values(actual), goldens.f64(key), tolerance);
}

/// The gradient of every parameter that has one, by the parameter's id.
pub fn gradients<B: AutodiffBackend>(
    module: &impl Module<B>,
    gradients: &B::Gradients,
) -> Vec<(ParamId, Values)> {
    struct Visitor<'a, B: AutodiffBackend> {
        gradients: &'a B::Gradients,
        found: Vec<(ParamId, Values)>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Visitor<'_, B> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            if let Some(gradient) = parameter.val().grad(self.gradients) {
                self.found.push((parameter.id, values(gradient)));
            }
        }
    }
    let mut visitor = Visitor {
        gradients,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}
