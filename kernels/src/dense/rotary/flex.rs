//! On slices, in one pass.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Rotary, reference};
use crate::flex::math::vectorised;
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl Rotary for Flex {
    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        if is_f32(&x) && is_f32(&cos) && is_f32(&sin) {
            forward(x, cos, sin)
        } else {
            reference::forward(x, cos, sin)
        }
    }
}

fn forward(x: Tensor<Flex, 4>, cos: Tensor<Flex, 2>, sin: Tensor<Flex, 2>) -> Tensor<Flex, 4> {
    let [b, l, h, p] = x.dims();
    let [_, r] = cos.dims();
    let (cos, sin) = (Values::of(cos), Values::of(sin));
    let mut y = Values::of(x).to_vec();
    let tokens = y.par_chunks_mut(h * p).enumerate();
    tokens
        .with_min_len(rows_per_task(h * p))
        .for_each(|(token, y)| {
            let angles = token % l * r..(token % l + 1) * r;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            vectorised(
                #[inline(always)]
                || {
                    for head in y.chunks_exact_mut(p) {
                        let (first, second) = head[..2 * r].split_at_mut(r);
                        for i in 0..r {
                            let (x1, x2) = (first[i], second[i]);
                            first[i] = x1 * cos[i] - x2 * sin[i];
                            second[i] = x2 * cos[i] + x1 * sin[i];
                        }
                    }
                },
            )
        });
    tensor(y, [b, l, h, p])
}
