//! On slices.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Gradients, Linear, reference};
use crate::flex::math::vectorised;
use crate::flex::products::{Matrix, column_sums, product};
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl Linear for Flex {
    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        if is_f32(&x) {
            forward(x, weight, bias)
        } else {
            reference::forward(x, weight, bias)
        }
    }

    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> Gradients<Self> {
        if is_f32(&x) {
            backward(x, weight, dy, wanted)
        } else {
            reference::backward(x, weight, dy, wanted)
        }
    }
}

fn forward(
    x: Tensor<Flex, 2>,
    weight: Tensor<Flex, 2>,
    bias: Option<Tensor<Flex, 1>>,
) -> Tensor<Flex, 2> {
    let [t, i] = x.dims();
    let [o, _] = weight.dims();
    let (x, weight) = (Values::of(x), Values::of(weight));
    let (x, weight_io) = (Matrix::rows(&x, i), Matrix::rows(&weight, i).transposed());
    let mut y = product([t, o, i], x, weight_io);
    if let Some(bias) = bias.map(Values::of) {
        y.par_chunks_mut(rows_per_task(o) * o).for_each(|rows| {
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact_mut(o) {
                        for (y, bias) in row.iter_mut().zip(&*bias) {
                            *y += bias;
                        }
                    }
                },
            )
        });
    }
    tensor(y, [t, o])
}

fn backward(
    x: Tensor<Flex, 2>,
    weight: Tensor<Flex, 2>,
    dy: Tensor<Flex, 2>,
    wanted: [bool; 3],
) -> Gradients<Flex> {
    let [t, i] = x.dims();
    let [o, _] = weight.dims();
    let (x, weight, dy) = (Values::of(x), Values::of(weight), Values::of(dy));
    let dy_to = Matrix::rows(&dy, o);
    let dx = wanted[0].then(|| {
        let dx = product([t, i, o], dy_to, Matrix::rows(&weight, i));
        tensor(dx, [t, i])
    });
    let dweight = wanted[1].then(|| {
        let dweight = product([o, i, t], dy_to.transposed(), Matrix::rows(&x, i));
        tensor(dweight, [o, i])
    });
    let dbias = wanted[2].then(|| tensor(column_sums(&dy, o), [o]));
    (dx, dweight, dbias)
}
