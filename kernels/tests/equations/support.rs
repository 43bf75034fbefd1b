//! Inputs of an op, its output with its gradients, and the comparison.

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use kernels::runtime::{Flex, NdArray64};
use tests::assert_close;

pub use tests::{Values, random};

pub type Exact = Autodiff<NdArray64>;
pub type Fast = Autodiff<Flex>;

/// Two evaluation orders of the same sums in 64 bits.
pub const F64_TOLERANCE: f64 = 1e-10;
/// 32-bit sums of a few hundred terms.
pub const F32_TOLERANCE: f64 = 1e-5;

pub fn tensor<B: Backend, const D: usize>((shape, values): Values) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Values {
    let shape = tensor.dims().to_vec();
    (shape, tensor.into_data().iter::<f64>().collect())
}

/// How to read one input's gradient.
type Gradient<B> = Box<dyn Fn(&<B as AutodiffBackend>::Gradients) -> Values>;

/// Collects an op's output and its gradients under the weights `dy`.
pub struct Trace<B: TrainBackend> {
    inputs: Vec<Gradient<B>>,
}

impl<B: TrainBackend> Trace<B> {
    pub fn new() -> Self {
        Self { inputs: vec![] }
    }

    /// A differentiated input of the op.
    pub fn input<const D: usize>(&mut self, of: &Values) -> Tensor<B, D> {
        let input = tensor::<B, D>(of.clone()).require_grad();
        let kept = input.clone();
        self.inputs.push(Box::new(move |grads| {
            values(kept.grad(grads).expect("a gradient"))
        }));
        input
    }

    pub fn finish<const D: usize>(self, output: Tensor<B, D>) -> Vec<Values> {
        let dy = tensor(random(77, &output.dims(), 1.0));
        let y = values(output.clone());
        let grads = (output * dy).sum().backward();
        let gradients = self.inputs.iter().map(|gradient| gradient(&grads));
        std::iter::once(y).chain(gradients).collect()
    }
}

pub fn agree(name: &str, actual: Vec<Values>, expected: Vec<Values>, tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (k, (actual, expected)) in actual.into_iter().zip(expected).enumerate() {
        assert_close(&format!("{name}, tensor {k}"), actual, expected, tolerance);
    }
}
