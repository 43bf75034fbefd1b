//! By a number that is read: that costs nothing here, and a loss is nearly always differentiated as it is.

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
