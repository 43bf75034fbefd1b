//! As published: mixers stay as they are drawn.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::{Fit, InitError, Initialise, Stop};
use crate::lm::CausalLm;

pub(super) struct Published;

impl Initialise for Published {
    fn initialise<B: KernelBackend>(
        &self,
        _student: &mut CausalLm<B>,
        _teacher: &CausalLm<B>,
        _text: &[Tensor<B, 2, Int>],
        _stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError> {
        Ok(vec![])
    }
}
