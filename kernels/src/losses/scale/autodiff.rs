//! The gradient of [`Scale::with_gradient`] on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::Scale;
use crate::autodiff::{input, primitive, record};

impl<B: Scale, C: CheckpointStrategy> Scale for Autodiff<B, C> {
    fn with_gradient<const D: usize>(y: Tensor<Self, D>, dy: Tensor<Self, D>) -> Tensor<Self, 1> {
        let dy = dy.inner();
        let nothing = Tensor::<B, 1>::zeros([1], (&dy.device(), dy.dtype()));
        record([input(&y)], nothing, dy, |dy, _, _| [Some(primitive(dy))])
    }
}
