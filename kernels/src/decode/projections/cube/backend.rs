//! Connects Burn's tensors to the launches. Inputs that a launch refuses are computed in parts, or by the reference.

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::launch::{self, Refusal};
use super::operands::{self, Scales};
use super::to_float;
use crate::cube::output_pool::{self, Allocate};
use crate::cube::{computes_in_f32, empty, inner, tensor};
use crate::decode::projections::{
    Activation, Form, Input, Normalisation, Projection, Projections, Weight, reference,
};
use crate::dtype::narrow;

impl<R, F, I, T> Projections for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn projections_into(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projections: Vec<(Projection<Self>, Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        into(x, norm, projections, output_pool::output)
    }

    fn projections_head(
        x: Tensor<Self, 2>,
        norm: Normalisation<Self>,
        projection: Projection<Self>,
    ) -> Tensor<Self, 2> {
        let projections = vec![(projection, Activation::Identity)];
        into(x, norm, projections, empty).swap_remove(0)
    }

    fn projections_out_of(
        x: Tensor<Self, 2>,
        inputs: Vec<(Input<Self>, Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        out_of(x, inputs)
    }

    fn int8_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        if to_float::has_kernel(&packed, dtype) && scales.dtype() == DType::F32 {
            let (packed, scales) = (packed.into_primitive(), inner(scales));
            tensor(to_float::floats(packed, scales, Form::Int8, dtype))
        } else {
            narrow(reference::int8_to_float(packed, scales), dtype)
        }
    }

    fn int4_to_float(
        packed: Tensor<Self, 2, Int>,
        scales: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        if to_float::has_kernel(&packed, dtype) {
            let (packed, scales) = (packed.into_primitive(), scales.into_primitive());
            tensor(to_float::floats(packed, scales, Form::Int4, dtype))
        } else {
            narrow(reference::int4_to_float(packed, scales), dtype)
        }
    }

    fn projections_rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let own = ids.clone().into_primitive();
        let fits = computes_in_f32(table.dtype()) && own.dtype == DType::I32;
        if fits && own.meta.shape().num_elements() > 0 {
            tensor(launch::rows(inner(table), own))
        } else {
            reference::rows(table, ids)
        }
    }
}

/// The largest number of vectors that are computed in parts. Each part reads all weights. For more vectors, one matrix
/// product in f32 is faster, but then the bits of a row may depend on the number of rows.
const IN_PARTS: usize = 64;

/// A projection and what follows it.
type Active<B> = (Projection<B>, Activation);
/// A projection and what goes into it.
type Fed<B> = (Input<B>, Projection<B>);

/// See [`into`](crate::decode::projections::into), with outputs by `allocate`.
fn into<R, F, I, T>(
    x: Tensor<CubeBackend<R, F, I, T>, 2>,
    norm: Normalisation<CubeBackend<R, F, I, T>>,
    projections: Vec<Active<CubeBackend<R, F, I, T>>>,
    allocate: Allocate<R>,
) -> Vec<Tensor<CubeBackend<R, F, I, T>, 2>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let x = inner(x);
    let norm = operands::Normalisation {
        gamma: inner(norm.gamma),
        beta: norm.beta.map(inner),
        epsilon: norm.epsilon,
    };
    let device = projections.into_iter();
    let device: Vec<_> = device
        .map(|(projection, act)| (on_device(projection), act))
        .collect();
    let refusal = match launch::ready_out(&x, &norm, &device) {
        Ok(ready) => {
            let outputs = launch::into(ready, x, norm, device, allocate);
            return outputs.into_iter().map(tensor).collect();
        }
        Err(refusal) => refusal,
    };
    let x: Tensor<_, 2> = tensor(x);
    let norm = Normalisation {
        gamma: tensor(norm.gamma),
        beta: norm.beta.map(tensor),
        epsilon: norm.epsilon,
    };
    let projections = device.into_iter();
    let projections: Vec<_> = projections
        .map(|(projection, act)| (off_device(projection), act))
        .collect();
    match refusal {
        Refusal::NoKernel => reference::into(x, norm, projections),
        Refusal::TooMany { .. } if x.dims()[0] > IN_PARTS => reference::into(x, norm, projections),
        Refusal::TooMany { at_once } => {
            let mut outputs = vec![vec![]; projections.len()];
            for (start, rows) in parts(x.dims()[0], at_once) {
                let x = x.clone().narrow(0, start, rows);
                let of_part = into(x, norm.clone(), projections.clone(), allocate);
                for (output, rows) in outputs.iter_mut().zip(of_part) {
                    output.push(rows);
                }
            }
            let outputs = outputs.into_iter();
            outputs.map(|rows| Tensor::cat(rows, 0)).collect()
        }
    }
}

/// See [`out_of`](crate::decode::projections::out_of).
fn out_of<R, F, I, T>(
    x: Tensor<CubeBackend<R, F, I, T>, 2>,
    inputs: Vec<Fed<CubeBackend<R, F, I, T>>>,
) -> Tensor<CubeBackend<R, F, I, T>, 2>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let x = inner(x);
    let all_gated = inputs.iter().all(|(input, _)| input.gate.is_some());
    let device = inputs.into_iter().map(|(input, projection)| {
        // A launch multiplies the two factors of all inputs or of none.
        let input = if all_gated {
            input
        } else {
            input.product().into()
        };
        let input = operands::Input {
            u: inner(input.u),
            gate: input.gate.map(inner),
        };
        (input, on_device(projection))
    });
    let device: Vec<_> = device.collect();
    let refusal = match launch::ready_in(&x, &device) {
        Ok(ready) => return tensor(launch::out_of(ready, x, device)),
        Err(refusal) => refusal,
    };
    let x: Tensor<CubeBackend<R, F, I, T>, 2> = tensor(x);
    let inputs = device.into_iter().map(|(input, projection)| {
        let input = Input {
            u: tensor(input.u),
            gate: input.gate.map(tensor),
        };
        (input, off_device(projection))
    });
    let inputs: Vec<Fed<CubeBackend<R, F, I, T>>> = inputs.collect();
    match refusal {
        Refusal::NoKernel => reference::out_of(x, inputs),
        Refusal::TooMany { .. } if x.dims()[0] > IN_PARTS => reference::out_of(x, inputs),
        Refusal::TooMany { at_once } => {
            let of_parts = parts(x.dims()[0], at_once).map(|(start, rows)| {
                let some = |u: &Tensor<_, 2>| u.clone().narrow(0, start, rows);
                let inputs = inputs.iter().map(|(input, projection)| {
                    let input = Input {
                        u: some(&input.u),
                        gate: input.gate.as_ref().map(some),
                    };
                    (input, projection.clone())
                });
                out_of(some(&x), inputs.collect())
            });
            Tensor::cat(of_parts.collect(), 0)
        }
    }
}

/// `b` rows in parts of `at_once`: where each begins, and how many rows it has.
fn parts(b: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..b).step_by(at_once);
    starts.map(move |start| (start, at_once.min(b - start)))
}

/// The CubeCL tensors of a projection.
fn on_device<R, F, I, T>(projection: Projection<CubeBackend<R, F, I, T>>) -> operands::Projection<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let (values, scales) = match projection.weight {
        Weight::Float(weight) => (inner(weight), Scales::None),
        Weight::Int8 { packed, scales } => (packed.into_primitive(), Scales::OfRows(inner(scales))),
        Weight::Int4 { packed, scales } => (
            packed.into_primitive(),
            Scales::OfGroups(scales.into_primitive()),
        ),
    };
    operands::Projection {
        weight: operands::Weight { values, scales },
        bias: projection.bias.map(inner),
    }
}

/// A projection again.
fn off_device<R, F, I, T>(
    projection: operands::Projection<R>,
) -> Projection<CubeBackend<R, F, I, T>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let weight = match projection.weight.scales {
        Scales::None => Weight::Float(tensor(projection.weight.values)),
        Scales::OfRows(scales) => Weight::Int8 {
            packed: Tensor::from_primitive(projection.weight.values),
            scales: tensor(scales),
        },
        Scales::OfGroups(scales) => Weight::Int4 {
            packed: Tensor::from_primitive(projection.weight.values),
            scales: Tensor::from_primitive(scales),
        },
    };
    Projection {
        weight,
        bias: projection.bias.map(tensor),
    }
}
