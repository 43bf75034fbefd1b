//! Products with weights in 8 and 4 bits on the CPU. A step reads each weight once in its packed form; no float copy of
//! it is made.

mod few;
mod many;
mod packed;
mod places;
mod rounded;
mod rows;

use burn::tensor::{DType, Int, Tensor};
use burn_flex::Flex;
use few::Vectors;
use packed::{Packed, Scales, Words};

use super::{Activation, Input, Normalisation, Projection, Projections, reference};
use crate::dtype::narrow;
use crate::flex::math::{sigmoid, vectorised};
use crate::flex::{Values, is_f32, tensor};

/// Vectors that [`Projections::projection`] multiplies with numbers as they are read: beyond, a product of matrices is faster.
const FEW: usize = 8;

impl Projections for Flex {
    fn projections_into(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projections: Vec<(Projection<Self>, Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        let packed = projections.iter();
        let packed: Option<Vec<_>> = packed
            .map(|(projection, _)| Packed::of(projection))
            .collect();
        let [b, _] = x.dims();
        let (true, Some(packed)) = (is_f32(&x) && b > 0, packed) else {
            return reference::into(x, norm, projections);
        };
        let normed = Vectors::of(reference::normalised(x, norm));
        let sums = packed.iter().map(|packed| vec![(packed, &normed)]);
        let outputs = few::multiply(b, sums.collect())
            .into_iter()
            .zip(projections);
        let activate = |(y, (_, activation))| Self::projection_activated(y, activation);
        outputs.map(activate).collect()
    }

    fn projections_out_of(
        x: Tensor<Self, 2>,
        inputs: Vec<(Input<Self>, Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        let packed = inputs.iter();
        let packed: Option<Vec<_>> = packed
            .map(|(_, projection)| Packed::of(projection))
            .collect();
        let in_f32 =
            |input: &Input<Self>| is_f32(&input.u) && input.gate.as_ref().is_none_or(is_f32);
        let in_f32 = inputs.iter().all(|(input, _)| in_f32(input));
        let [b, _] = x.dims();
        let (true, Some(packed)) = (in_f32 && b > 0, packed) else {
            return reference::out_of(x, inputs);
        };
        let inputs = inputs.into_iter();
        let inputs: Vec<_> = inputs.map(|(input, _)| Vectors::of(input)).collect();
        let mut sums = few::multiply(b, vec![packed.iter().zip(&inputs).collect()]);
        sums.swap_remove(0) + x
    }

    fn projection(x: Tensor<Self, 2>, projection: Projection<Self>) -> Tensor<Self, 2> {
        let [b, _] = x.dims();
        match Packed::of(&projection) {
            Some(packed) if is_f32(&x) && (1..=FEW).contains(&b) => {
                let x = Vectors::of(x);
                few::multiply(b, vec![vec![(&packed, &x)]]).swap_remove(0)
            }
            Some(packed) if is_f32(&x) && b > 0 => many::multiply(x, &packed),
            _ => reference::linear(x, projection),
        }
    }

    fn multiplies_packed() -> bool {
        true
    }

    fn projection_activated(y: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        if activation != Activation::Silu || !is_f32(&y) {
            return reference::activated(y, activation);
        }
        let shape = y.dims();
        let mut y = Values::of(y).to_vec();
        vectorised(
            #[inline(always)]
            || y.iter_mut().for_each(|v| *v *= sigmoid(*v)),
        );
        tensor(y, shape)
    }

    fn int8_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        let words = is_f32(&scales).then(|| Words::of(packed.clone())).flatten();
        let Some(words) = words else {
            return narrow(reference::int8_to_float(packed, scales), dtype);
        };
        let scales = Scales::OfRows(Values::of(scales));
        narrow(many::floats(packed.dims(), &words, &scales), dtype)
    }

    fn int4_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        let (Some(words), Some(pairs)) = (Words::of(packed.clone()), Words::of(scales.clone()))
        else {
            return narrow(reference::int4_to_float(packed, scales), dtype);
        };
        narrow(
            many::floats(packed.dims(), &words, &Scales::OfGroups(pairs)),
            dtype,
        )
    }
}
