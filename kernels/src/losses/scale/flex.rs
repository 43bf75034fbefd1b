//! The factor is read on the host, which costs nothing on a CPU. It is nearly always 1, because a loss is mostly
//! differentiated without further operations.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::Scale;

impl Scale for Flex {
    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        match by.into_scalar() {
            1.0 => x,
            by => x * by,
        }
    }
}
