//! The backward passes on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::Linear;
use crate::autodiff::{input, optional, primitive, record, value, values};
use crate::profile::{Kind, timed};

impl<B: Linear, C: CheckpointStrategy> Linear for Autodiff<B, C> {
    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&weight));
        let y = B::linear_forward(saved.0.clone(), saved.1.clone(), values(&bias));
        let inputs = [input(&x), input(&weight), optional(&bias)];
        record(inputs, y, saved, |(x, weight), dy, wanted| {
            let (dx, dweight, dbias) =
                timed(Kind::Products, || B::linear_backward(x, weight, dy, wanted));
            [
                dx.map(primitive),
                dweight.map(primitive),
                dbias.map(primitive),
            ]
        })
    }

    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&weight));
        let (x_, weight_) = saved.clone();
        let y = B::linear_onto(value(&residual), x_, weight_, values(&bias));
        let inputs = [input(&residual), input(&x), input(&weight), optional(&bias)];
        record(inputs, y, saved, |(x, weight), dy, wanted| {
            let [onto, wanted @ ..] = wanted;
            let dresidual = onto.then(|| dy.clone());
            let (dx, dweight, dbias) =
                timed(Kind::Products, || B::linear_backward(x, weight, dy, wanted));
            [
                dresidual.map(primitive),
                dx.map(primitive),
                dweight.map(primitive),
                dbias.map(primitive),
            ]
        })
    }
}
