//! One CubeCL launch with a cube for each row. Each unit holds neighbouring tokens in its registers.
//!
//! Nothing is sorted. `top_k` and `top_p` keep the tokens above some threshold logit, and this threshold is found bit
//! by bit: a count or a sum over the vocabulary says in which half of the remaining range it lies. That takes 31 sums
//! for each of the two, a few tens of microseconds.

mod kernels;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::choose;
use super::{Choice, Sample};
use crate::cube::inner;

impl<R, F, I, T> Sample for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn sample(
        logits: Tensor<Self, 2>,
        seen: Option<&mut Tensor<Self, 2, Int>>,
        vocab_size: usize,
        choices: &[Choice],
    ) -> Option<Tensor<Self, 1, Int>> {
        let logits = inner(logits);
        // Written in place, as the caller holds no other clone.
        let seen = seen.map(|seen| seen.clone().into_primitive());
        let in_place = |seen: &CubeTensor<R>| {
            let rows = seen.meta.strides()[1] == 1 && seen.is_nonoverlapping();
            seen.dtype == DType::I32 && rows
        };
        if logits.dtype != DType::F32 || !seen.iter().all(in_place) {
            return None;
        }
        let chosen = choose(logits, seen, vocab_size, choices);
        Some(Tensor::from_primitive(chosen))
    }
}
