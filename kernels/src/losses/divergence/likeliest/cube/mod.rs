//! As a CubeCL kernel: a cube a row finds the `k`-th largest logit bit by bit, by counting how many are as large, and
//! among those that equal it the ids that are left out. What is chosen is put in order in shared memory.

mod kernels;

use burn::tensor::Tensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::kernels::{fits_shared_memory, launch};
use super::{Likeliest, reference};
use crate::cube::{computes_in_f32, inner, tensor};
use crate::losses::divergence::top_classes::TopClasses;

impl<R, F, I, T> Likeliest for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn likeliest(logits: Tensor<Self, 2>, k: usize) -> TopClasses<Self> {
        let has_elements = logits.shape().num_elements() > 0;
        let logits = inner(logits);
        if !has_elements || !computes_in_f32(logits.dtype) || !fits_shared_memory(&logits.client, k)
        {
            return reference::likeliest(tensor::<R, Self, 2>(logits), k);
        }
        let [ids, log_q, log_rest] = launch(logits, k);
        TopClasses {
            ids: Tensor::from_primitive(ids),
            log_q: tensor(log_q),
            log_rest: tensor(log_rest),
        }
    }
}
