//! On slices, element by element.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{SwiGlu, reference};
use crate::flex::math::{sigmoid, vectorised};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl SwiGlu for Flex {
    fn swiglu_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if is_f32(&gate) && is_f32(&up) {
            forward(gate, up)
        } else {
            reference::forward(gate, up)
        }
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        if is_f32(&gate) && is_f32(&up) && is_f32(&dy) {
            backward(gate, up, dy)
        } else {
            reference::backward(gate, up, dy)
        }
    }
}

/// Elements of a task.
fn task() -> usize {
    rows_per_task(1) * 16
}

fn forward(gate: Tensor<Flex, 2>, up: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let shape = gate.dims();
    let (gate, up) = (Values::of(gate), Values::of(up));
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(task())
        .zip(gate.par_chunks(task()).zip(up.par_chunks(task())))
        .for_each(|(y, (gate, up))| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = gate * sigmoid(gate) * up;
                    }
                },
            )
        });
    tensor(y, shape)
}

/// `silu'(v) = s (1 + v (1 - s))` with `s` the sigmoid of `v`.
fn backward(
    gate: Tensor<Flex, 2>,
    up: Tensor<Flex, 2>,
    dy: Tensor<Flex, 2>,
) -> [Tensor<Flex, 2>; 2] {
    let shape = gate.dims();
    let (gate, up, dy) = (Values::of(gate), Values::of(up), Values::of(dy));
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    let inputs = gate.par_chunks(task()).zip(up.par_chunks(task()));
    dgate
        .par_chunks_mut(task())
        .zip(dup.par_chunks_mut(task()))
        .zip(inputs.zip(dy.par_chunks(task())))
        .for_each(|((dgate, dup), ((gate, up), dy))| {
            vectorised(
                #[inline(always)]
                || {
                    let n = gate.len();
                    let (up, dy) = (&up[..n], &dy[..n]);
                    let (dgate, dup) = (&mut dgate[..n], &mut dup[..n]);
                    for i in 0..n {
                        let s = sigmoid(gate[i]);
                        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                        dup[i] = dy[i] * gate[i] * s;
                    }
                },
            )
        });
    [tensor(dgate, shape), tensor(dup, shape)]
}
