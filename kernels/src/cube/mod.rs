//! The CubeCL backends: which ops have kernels of their own on CUDA and wgpu.
//!
//! Each op's own `cube` module holds its kernels and their launch; here is what they share, and the
//! choice between them and the reference.
//!
//! A kernel with two or more optional arguments also takes `_given` at compile time, which of them are
//! there. CubeCL keeps compiled kernels on disk under a hash in which an argument that is absent leaves
//! no trace, so that without it one kernel could be loaded for another (see `compiled`).

pub(crate) mod again;
pub(crate) mod compiled;
pub(crate) mod each_row;
pub(crate) mod guard;
pub(crate) mod kept;
pub(crate) mod matrix;
pub(crate) mod reduce;
pub(crate) mod rows;
pub(crate) mod scaled;
pub(crate) mod tiles;

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::AddressType;
use cubecl::std::tensor::copy_into;
use cubecl::tensor_vector_size_parallel;

use crate::conv::Activation;
use crate::*;

/// The CubeCL tensor behind `x`.
pub(crate) fn inner<R, B, const D: usize>(x: Tensor<B, D>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    x.into_primitive().tensor()
}

/// The tensor over `x`.
pub(crate) fn tensor<R, B, const D: usize>(x: CubeTensor<R>) -> Tensor<B, D>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// A tensor to be written, in rows without padding, on the device of `like`.
pub(crate) fn empty<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), dtype)
}

/// How many neighbours along the last axis can be read and written together in all of `tensors`.
pub(crate) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    let sizes = tensors.iter().map(|x| {
        let sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        tensor_vector_size_parallel(sizes, shape, strides, x.meta.num_dims() - 1)
    });
    sizes.min().unwrap_or(1)
}

/// The width of an index into the largest of `tensors`.
pub(crate) fn address_type<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    let widths = tensors.iter().map(|x| x.required_address_type());
    widths.max().unwrap_or_default()
}

/// `x` if nothing else holds it and it has no gaps, or a copy.
pub(crate) fn own<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    if x.can_mut() && x.is_contiguous() {
        return x;
    }
    let shape = x.meta.shape().clone();
    let copy = CubeTensor::new_contiguous(
        x.client.clone(),
        x.device.clone(),
        shape.clone(),
        x.client.empty(shape.num_elements() * x.dtype.size()),
        x.dtype,
    );
    let (client, dtype) = (x.client.clone(), x.dtype);
    copy_into(&client, x.binding(), copy.clone().binding(), dtype.into());
    copy
}

/// How many neighbours can be read and written together in all of `tensors`, which have no gaps and equally
/// many elements.
pub(crate) fn flat_vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    let sizes = tensors.iter().map(|x| {
        let elements = x.meta.num_elements();
        let mut sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        sizes.find(|size| elements % size == 0).unwrap_or(1)
    });
    sizes.min().unwrap_or(1)
}

impl<R, F, I, T> KernelBackend for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn queues() -> bool {
        true
    }

    fn holds(device: &Self::Device, dtype: DType) -> bool {
        is_taken(dtype) && Self::supports_dtype(device, dtype)
    }

    fn memory(device: &Self::Device) -> Option<devices::Memory> {
        // An error is told by whoever waits for the device.
        let usage = R::client(device).memory_usage().ok()?;
        Some(devices::Memory {
            in_use: usage.bytes_in_use,
            reserved: usage.bytes_reserved,
        })
    }

    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        let fit = is_taken(x.dtype()) && is_taken(gamma.dtype()) && beta.dtype() == gamma.dtype();
        match fit && x.shape().num_elements() > 0 {
            true => tensor(norm::cube::forward(
                inner(x),
                inner(gamma),
                inner(beta),
                epsilon,
            )),
            false => norm::reference::forward(x, gamma, beta, epsilon),
        }
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 3],
    ) -> norm::Gradients<Self> {
        let fit = is_taken(x.dtype()) && is_taken(gamma.dtype()) && dy.dtype() == x.dtype();
        if !fit || x.shape().num_elements() == 0 {
            return norm::reference::backward(x, gamma, dy, epsilon, wanted);
        }
        let (x, gamma, dy) = (inner(x), inner(gamma), inner(dy));
        let [dx, dgamma, dbeta] = norm::cube::backward(x, gamma, dy, epsilon, wanted);
        (dx.map(tensor), dgamma.map(tensor), dbeta.map(tensor))
    }

    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match is_taken(x.dtype()) && x.shape().num_elements() > 0 {
            true => tensor(gelu::cube::forward(inner(x))),
            false => gelu::reference::forward(x),
        }
    }

    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        assert_eq!(x.dtype(), dy.dtype(), "gelu_new: one dtype for both");
        match is_taken(x.dtype()) && x.shape().num_elements() > 0 {
            true => tensor(gelu::cube::backward(inner(x), inner(dy))),
            false => gelu::reference::backward(x, dy),
        }
    }

    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        linear::cube::Layer::new(x, weight, bias).forward()
    }

    fn linear_gelu(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let layer = linear::cube::Layer {
            gelu: true,
            ..linear::cube::Layer::new(x, weight, bias)
        };
        layer.forward()
    }

    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let layer = linear::cube::Layer {
            onto: Some(inner(residual)),
            ..linear::cube::Layer::new(x, weight, bias)
        };
        layer.forward()
    }

    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> linear::Gradients<Self> {
        linear::cube::backward(x, weight, dy, wanted)
    }

    fn gated_skip_forward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 3> {
        gate::cube::forward(y, x, d, z, z_bias)
    }

    fn gated_skip_backward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
        dout: Tensor<Self, 3>,
    ) -> GatedSkipGradients<Self> {
        gate::cube::backward(y, x, d, z, z_bias, dout)
    }

    fn causal_conv_forward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: Activation,
    ) -> Tensor<Self, 3> {
        let inputs = conv::cube::Inputs {
            x: inner(x),
            weight: inner(weight),
            bias: bias.map(inner),
            history: history.map(inner),
        };
        tensor(conv::cube::forward(inputs, activation))
    }

    fn causal_conv_backward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: Activation,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        let inputs = conv::cube::Inputs {
            x: inner(x),
            weight: inner(weight),
            bias: bias.map(inner),
            history: history.map(inner),
        };
        let gradients = conv::cube::backward(inputs, activation, inner(dy), wanted);
        ConvGradients {
            x: gradients.x.map(tensor),
            weight: gradients.weight.map(tensor),
            bias: gradients.bias.map(tensor),
            history: gradients.history.map(tensor),
        }
    }

    fn ssd_scan_forward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let scan = ScanInputs {
            x,
            a_log,
            b,
            c,
            initial_state,
        };
        ssd::cube::forward(scan, chunk)
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
        let scan = ScanInputs {
            x,
            a_log,
            b,
            c,
            initial_state,
        };
        ssd::cube::backward(scan, dy, chunk)
    }

    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        chunk: usize,
    ) -> GatedScan<Self> {
        ssd::cube::gated_forward(scan, epilogue, chunk)
    }

    fn gated_scan_backward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        y: Option<Tensor<Self, 4>>,
        dout: Tensor<Self, 4>,
        chunk: usize,
    ) -> GatedScanGradients<Self> {
        ssd::cube::gated_backward(scan, epilogue, y, dout, chunk)
    }

    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        let inputs = step::cube::Inputs {
            projected: inner(projected),
            taps: inner(parameters.taps),
            bias: parameters.bias.map(inner),
            activation: parameters.activation,
            d: inner(parameters.d),
            z_bias: parameters.z_bias.map(inner),
            conv: inner(state.conv),
            ssm: inner(state.ssm),
        };
        if !inputs.fit() {
            let parameters = StepParameters {
                taps: tensor(inputs.taps),
                bias: inputs.bias.map(tensor),
                activation: inputs.activation,
                d: tensor(inputs.d),
                z_bias: inputs.z_bias.map(tensor),
            };
            let state = StepState {
                conv: tensor(inputs.conv),
                ssm: tensor(inputs.ssm),
            };
            return step::reference::step(tensor(inputs.projected), parameters, state);
        }
        let (output, conv, ssm) = step::cube::step(inputs);
        let state = StepState {
            conv: tensor(conv),
            ssm: tensor(ssm),
        };
        (tensor(output), state)
    }

    fn fan_out(
        x: Tensor<Self, 2>,
        norm: matvec::Normalisation<Self>,
        projections: Vec<(matvec::Projection<Self>, matvec::Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        matvec::cube::backend::fan_out(x, norm, projections, kept::output)
    }

    fn head(
        x: Tensor<Self, 2>,
        norm: matvec::Normalisation<Self>,
        projection: matvec::Projection<Self>,
    ) -> Tensor<Self, 2> {
        let projections = vec![(projection, matvec::Activation::Identity)];
        matvec::cube::backend::fan_out(x, norm, projections, empty).swap_remove(0)
    }

    fn fan_in(
        x: Tensor<Self, 2>,
        inputs: Vec<(Tensor<Self, 2>, matvec::Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        matvec::cube::backend::fan_in(x, inputs)
    }

    fn rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let (rows, own) = (inner(table), ids.into_primitive());
        match own.dtype {
            DType::I32 if own.meta.shape().num_elements() > 0 => {
                tensor(matvec::cube::rows(rows, own))
            }
            _ => matvec::reference::rows(tensor(rows), Tensor::from_primitive(own)),
        }
    }

    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        match q.shape().num_elements() {
            // The output has its shape.
            0 => q,
            _ => tensor(attention::cube::forward(inner(q), inner(k), inner(v))),
        }
    }

    fn attention_step(
        token: attention::step::NewToken<Self>,
        cache: Option<attention::step::Cache<Self>>,
        h: usize,
    ) -> (Tensor<Self, 2>, attention::step::Cache<Self>) {
        let ([b, width], [_, d_kv]) = (token.q.dims(), token.k.dims());
        let p = width / h;
        let inputs = attention::step::cube::Inputs {
            q: inner(token.q.clone()),
            k: inner(token.k.clone()),
            v: inner(token.v.clone()),
            cos: inner(token.cos.clone()),
            sin: inner(token.sin.clone()),
        };
        if !inputs.fit(p) {
            return attention::step::reference::step(token, cache, h);
        }
        let len = cache.as_ref().map_or(0, |cache| cache.len);
        let sizes = [b, d_kv / p, p];
        let [keys, values] = attention::step::cube::with_room(cache, sizes, &inputs.k);
        let y = attention::step::cube::step(inputs, &keys, &values, len, h);
        let cache = attention::step::Cache {
            keys: tensor(keys),
            values: tensor(values),
            len: len + 1,
        };
        (tensor(y), cache)
    }

    fn choose(
        logits: Tensor<Self, 2>,
        seen: Option<&mut Tensor<Self, 2, Int>>,
        vocab_size: usize,
        choices: &[choice::Choice],
    ) -> Option<Tensor<Self, 1, Int>> {
        let logits = inner(logits);
        // Written where it is, as the caller's alone.
        let seen = seen.map(|seen| seen.clone().into_primitive());
        let in_place = |seen: &CubeTensor<R>| {
            let rows = seen.meta.strides()[1] == 1 && seen.is_nonoverlapping();
            seen.dtype == DType::I32 && rows
        };
        if logits.dtype != DType::F32 || !seen.iter().all(in_place) {
            return None;
        }
        let chosen = choice::cube::choose(logits, seen, vocab_size, choices);
        Some(Tensor::from_primitive(chosen))
    }

    fn distillation_loss_forward(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> Tensor<Self, 1> {
        let inputs = distillation_inputs(&student, &teacher, &labels, weights);
        if !inputs.fit() {
            return distillation::reference::forward(student, teacher, labels, weights);
        }
        let ([t, _], dtype) = (student.dims(), student.dtype());
        let loss = tensor(distillation::cube::block(inputs, t, false).0);
        ssd::reference::narrow(loss, dtype)
    }

    fn distillation_loss_with_gradient(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let ([t, _], dtype) = (student.dims(), student.dtype());
        let (loss, gradient) = Self::distillation_block(student, teacher, labels, weights, t);
        (ssd::reference::narrow(loss, dtype), gradient)
    }

    fn distillation_block(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let inputs = distillation_inputs(&student, &teacher, &labels, weights);
        if !inputs.fit() {
            return distillation::reference::block(student, teacher, labels, weights, tokens);
        }
        let (loss, gradient) = distillation::cube::block(inputs, tokens, true);
        (tensor(loss), tensor(gradient.expect("it is wanted")))
    }

    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        let shape = x.dims();
        let takes = is_taken(x.dtype()) && is_taken(by.dtype());
        if !takes || shape.contains(&0) {
            let (dtype, wide) = (x.dtype(), by.dtype());
            let x = ssd::reference::narrow(x, wide);
            return ssd::reference::narrow(x * by.reshape([1; D]), dtype);
        }
        let x = into_contiguous(inner(x.reshape([shape.iter().product::<usize>()])));
        tensor::<R, Self, 1>(scaled::scaled(x, inner(by))).reshape(shape)
    }

    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let (left, right) = (inner(a.clone()), inner(b.clone()));
        if !rows_distance::cube::fit(&left, &right) {
            return rows_distance::reference::forward(a, b);
        }
        tensor(rows_distance::cube::distance(left, right, false).0)
    }

    fn rows_distance_with_gradient(
        a: Tensor<Self, 2>,
        b: Tensor<Self, 2>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let (left, right) = (inner(a.clone()), inner(b.clone()));
        if !rows_distance::cube::fit(&left, &right) {
            return rows_distance::reference::with_gradient(a, b);
        }
        let (loss, gradient) = rows_distance::cube::distance(left, right, true);
        (tensor(loss), tensor(gradient.expect("it is wanted")))
    }

    fn embedding_gradient(
        ids: Tensor<Self, 2, Int>,
        dy: Tensor<Self, 3>,
        v: usize,
    ) -> Tensor<Self, 2> {
        let [b, l, d] = dy.dims();
        let rows = inner(dy.clone().reshape([b * l, d]));
        let places = ids.clone().into_primitive();
        if !embedding::cube::fit(&places, &rows) {
            return embedding::reference::gradient(ids, dy, v);
        }
        let zeros = Tensor::<Self, 2>::zeros([v, d], (&dy.device(), dy.dtype()));
        tensor(embedding::cube::write_row_sums(places, rows, inner(zeros)))
    }

    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        let (own, angles) = (inner(x.clone()), [cos.clone(), sin.clone()].map(inner));
        if !rotary::cube::fit(&own, angles.each_ref()) {
            return rotary::reference::forward(x, cos, sin);
        }
        let [cos, sin] = angles;
        tensor(rotary::cube::rotate(own, cos, sin))
    }

    fn rotary_of_heads(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
        heads: usize,
    ) -> Tensor<Self, 4> {
        let (own, angles) = (inner(x), [cos.clone(), sin.clone()].map(inner));
        let in_place = own.can_mut() && own.is_nonoverlapping();
        if heads == 0 || !in_place || !rotary::cube::fit(&own, angles.each_ref()) {
            return rotary::reference::of_heads(tensor(own), cos, sin, heads);
        }
        tensor(rotary::cube::rotate_in_place(own, angles, heads))
    }

    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        tensor(distance::cube::forward(distance_inputs(student, teacher)))
    }

    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        let inputs = distance_inputs(student, teacher);
        let (loss, gradients) = distance::cube::with_gradients(inputs);
        let gradients = TransferParts {
            a_log: tensor(gradients.a_log),
            b: tensor(gradients.b),
            c: tensor(gradients.c),
            d: tensor(gradients.d),
        };
        (tensor(loss), gradients)
    }

    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        [m, v]: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        let single = |x: &Tensor<Self, D>| x.dtype() == DType::F32;
        let fit = [&parameter, &m, &v].into_iter().all(single) && is_taken(gradient.dtype());
        if !fit || scale.dtype() != DType::F32 || parameter.shape().num_elements() == 0 {
            return adamw::reference::step(parameter, gradient, [m, v], scale, step);
        }
        let moments = [inner(m), inner(v)];
        let (parameter, moments) = adamw::cube::step(
            inner(parameter),
            inner(gradient),
            moments,
            inner(scale),
            step,
        );
        (tensor(parameter), moments.map(tensor))
    }

    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        match is_taken(x.dtype()) {
            true => tensor(adamw::cube::squared_norms(vec![inner(x)])),
            false => adamw::reference::squared_norm(x),
        }
    }

    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        match xs.iter().all(|x| is_taken(x.dtype())) {
            true => tensor(adamw::cube::squared_norms(
                xs.into_iter().map(inner).collect(),
            )),
            false => adamw::reference::squared_norms(xs),
        }
    }
}

/// Whether kernels that compute in f32 take and give `dtype`.
pub(crate) fn is_taken(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// How an output `[b, d]` comes to be, like a tensor.
pub(crate) type Allocate<R> = fn(&CubeTensor<R>, [usize; 2], DType) -> CubeTensor<R>;

fn distillation_inputs<R, B>(
    student: &Tensor<B, 2>,
    teacher: &Tensor<B, 2>,
    labels: &Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
) -> distillation::cube::Inputs<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    distillation::cube::Inputs {
        student: inner(student.clone()),
        teacher: inner(teacher.clone()),
        labels: labels.clone().map(Tensor::into_primitive),
        weights,
    }
}

fn distance_inputs<R, F, I, T>(
    student: TransferParts<CubeBackend<R, F, I, T>>,
    teacher: AttentionParts<CubeBackend<R, F, I, T>>,
) -> distance::cube::Inputs<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    distance::cube::Inputs {
        a_log: inner(student.a_log),
        b: inner(student.b),
        c: inner(student.c),
        d: into_contiguous(inner(student.d)),
        q: inner(teacher.q),
        k: inner(teacher.k),
    }
}
