//! Burn's `Flex` CPU backend: every op on plain f32 slices, vectorised and on all cores.
//!
//! Each op's own `flex.rs` holds its loops; here is what they share, and the choice between them
//! and the reference (which takes every other dtype). Sums over tokens are cut into blocks of a
//! fixed size and added in order, so results do not depend on the number of threads.

pub(crate) mod math;

use std::ops::Deref;

use burn::tensor::{Bytes, DType, Int, Shape, Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use crate::*;

/// A tensor's values as one contiguous slice; a copy only where they were not.
pub(crate) struct Values(FlexTensor);

impl Values {
    pub(crate) fn of<const D: usize>(x: Tensor<Flex, D>) -> Self {
        let x = x.into_primitive().tensor();
        match x.as_slice::<f32>() {
            Some(_) => Self(x),
            None => Self(x.to_contiguous()),
        }
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_slice().expect("an f32 tensor made contiguous")
    }
}

/// The values of an integer tensor, whatever its width.
pub(crate) fn integers<const D: usize>(x: Tensor<Flex, D, Int>) -> Vec<i64> {
    x.into_data().iter::<i64>().collect()
}

/// A tensor that takes over `values`, in rows.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    let layout = Layout::contiguous(Shape::from(shape));
    let primitive = FlexTensor::new(Bytes::from_elems(values), layout, DType::F32);
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Rows that one task handles: enough that starting it costs nothing beside its work, few enough
/// to share among cores.
pub(crate) fn rows_per_task(row: usize) -> usize {
    (16_384 / row.max(1)).clamp(1, 1024)
}

/// Heads' `[l, d]` blocks, `[b, k]` of them in order, to `[b, l, k, d]`.
pub(crate) fn interleave(blocks: &[&[f32]], b: usize, l: usize, d: usize) -> Vec<f32> {
    let k = blocks.len() / b;
    let mut out = vec![0.0; b * l * k * d];
    let tokens = out.par_chunks_mut(k * d).enumerate();
    tokens
        .with_min_len(rows_per_task(k * d))
        .for_each(|(token, out)| {
            let (batch, t) = (token / l, token % l);
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                out.copy_from_slice(&blocks[batch * k + head][t * d..][..d]);
            }
        });
    out
}

fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}

impl KernelBackend for Flex {
    fn lanes() -> usize {
        rayon::current_num_threads()
    }

    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        if !is_f32(&x) {
            return linear::reference::forward(x, weight, bias);
        }
        linear::flex::forward(x, weight, bias)
    }

    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> linear::Gradients<Self> {
        if !is_f32(&x) {
            return linear::reference::backward(x, weight, dy, wanted);
        }
        linear::flex::backward(x, weight, dy, wanted)
    }

    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if !is_f32(&x) {
            return norm::reference::forward(x, gamma, beta, epsilon);
        }
        norm::flex::forward(x, gamma, beta, epsilon as f32)
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 3],
    ) -> norm::Gradients<Self> {
        if !is_f32(&x) {
            return norm::reference::backward(x, gamma, dy, epsilon, wanted);
        }
        norm::flex::backward(x, gamma, dy, epsilon as f32, wanted)
    }

    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !is_f32(&x) {
            return gelu::reference::forward(x);
        }
        gelu::flex::forward(x)
    }

    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !is_f32(&x) {
            return gelu::reference::backward(x, dy);
        }
        gelu::flex::backward(x, dy)
    }

    fn gated_skip_forward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 3> {
        if !is_f32(&y) {
            return gate::reference::forward(y, x, d, z, z_bias);
        }
        gate::flex::forward(y, x, d, z, z_bias)
    }

    fn gated_skip_backward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
        dout: Tensor<Self, 3>,
    ) -> GatedSkipGradients<Self> {
        if !is_f32(&y) {
            return gate::reference::backward(y, x, d, z, z_bias, dout);
        }
        gate::flex::backward(y, x, d, z, z_bias, dout)
    }

    fn causal_conv_forward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: conv::Activation,
    ) -> Tensor<Self, 3> {
        if !is_f32(&x) {
            return conv::reference::forward(x, weight, bias, history, activation);
        }
        conv::flex::forward(x, weight, bias, history, activation)
    }

    fn causal_conv_backward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: conv::Activation,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        // The history is a constant wherever a model trains; the rare rest takes the reference.
        if !is_f32(&x) || history.is_some() {
            return conv::reference::backward(x, weight, bias, history, activation, dy, wanted);
        }
        let dy = match activation {
            conv::Activation::Identity => dy,
            conv::Activation::Silu => {
                let identity = conv::Activation::Identity;
                let sums = conv::flex::forward(x.clone(), weight.clone(), bias, None, identity);
                conv::reference::through_silu(sums, dy)
            }
        };
        conv::flex::backward(x, weight, dy, wanted)
    }

    fn ssd_scan_forward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        if !is_f32(&x) {
            return ssd::reference::forward(x, a_log, b, c, initial_state, chunk);
        }
        ssd::flex::forward(x, a_log, b, c, initial_state, chunk)
    }

    fn ssd_scan_backward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        if !is_f32(&x) {
            return ssd::reference::backward(x, a_log, b, c, initial_state, dy, chunk);
        }
        ssd::flex::backward(x, a_log, b, c, initial_state, dy, chunk)
    }

    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        if !(is_f32(&projected) && is_f32(&parameters.taps) && is_f32(&state.conv)) {
            return step::reference::step(projected, parameters, state);
        }
        step::flex::step(projected, parameters, state)
    }

    fn distillation_loss_forward(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> Tensor<Self, 1> {
        if !(is_f32(&student) && is_f32(&teacher)) {
            return distillation::reference::forward(student, teacher, labels, weights);
        }
        distillation::flex::forward(student, teacher, labels, weights)
    }

    fn distillation_loss_with_gradient(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !(is_f32(&student) && is_f32(&teacher)) {
            return distillation::reference::with_gradient(student, teacher, labels, weights);
        }
        let tokens = student.dims()[0];
        distillation::flex::block(student, teacher, labels, weights, tokens)
    }

    fn distillation_block(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        if !(is_f32(&student) && is_f32(&teacher)) {
            return distillation::reference::block(student, teacher, labels, weights, tokens);
        }
        distillation::flex::block(student, teacher, labels, weights, tokens)
    }

    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        // Reading a number costs nothing here, and a loss is nearly always differentiated as it is.
        match by.into_scalar() {
            1.0 => x,
            by => x * by,
        }
    }

    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        if !is_f32(&parameter) {
            return adamw::reference::step(parameter, gradient, moments, scale, step);
        }
        let gradient = ssd::reference::widen(gradient);
        let scale = ssd::reference::widen(scale).into_scalar();
        adamw::flex::step(parameter, gradient, moments, scale, step)
    }

    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        if !is_f32(&x) {
            return adamw::reference::squared_norm(x);
        }
        adamw::flex::squared_norms(vec![x])
    }

    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        if !xs.iter().all(is_f32) {
            return adamw::reference::squared_norms(xs);
        }
        adamw::flex::squared_norms(xs)
    }

    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        if !(is_f32(&x) && is_f32(&cos) && is_f32(&sin)) {
            return rotary::reference::forward(x, cos, sin);
        }
        rotary::flex::forward(x, cos, sin)
    }

    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        if !is_f32(&q) {
            return attention::reference::forward(q, k, v);
        }
        attention::flex::forward(q, k, v)
    }

    fn attention_matrix(q: Tensor<Self, 4>, k: Tensor<Self, 4>) -> Tensor<Self, 4> {
        if !is_f32(&q) {
            return attention::reference::matrix(q, k);
        }
        attention::flex::matrix(q, k)
    }

    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        Self::mixing_distance_with_gradients(student, teacher).0
    }

    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        if !is_f32(&student.b) {
            return distance::reference::with_gradients(student, teacher);
        }
        distance::flex::with_gradients(student, teacher)
    }
}
