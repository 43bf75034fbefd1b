//! The ops that Burn lacks for MOHAWK and Phi-Mamba.
//!
//! # Why a backend-extension trait
//!
//! Everything above this crate is generic over [`KernelBackend`], a trait over Burn's `Backend`
//! with one method for each op and one for its backward pass. Each method has a default body in
//! plain tensor operations, so any Burn backend gets every op with an empty `impl`; a backend that
//! can do better overrides the method, and no caller changes. The alternatives were worse: ops
//! composed from tensors alone are too slow everywhere (a scan's backward is hundreds of small
//! tensors, AdamW reads each parameter a dozen times), and functions that match on a concrete
//! backend would make the networks know which backends exist.
//!
//! # What an op folder holds
//!
//! - `mod.rs`: the contract: shapes, dtypes, equations, and the function that callers use.
//! - `reference.rs`: the definition in tensor operations, forward and analytic backward. Everything
//!   faster is tested against it, and it is tested against recorded vectors in 64-bit arithmetic.
//! - `flex.rs`: the same on slices, for Burn's `Flex` CPU backend.
//! - `cube.rs`: the same as CubeCL kernels, for GPUs.
//!
//! [`autodiff`](crate) registers the backward passes with Burn's autodiff, once for all backends.
//! Backward passes are written out by hand and not left to autodiff: a composed scan would keep
//! every intermediate alive.
//!
//! # Precision
//!
//! Half-precision inputs of the scan, attention, the normalisation, the losses and the norms of gradients
//! are widened to f32 inside, and those of every kernel on a GPU; otherwise ops compute in the dtype of
//! their inputs. The ops of a decoding step ([`matvec`], [`step`], [`attention::step`]) take f32 vectors
//! beside weights of any dtype.

#![deny(missing_docs)]

pub mod adamw;
pub mod attention;
mod autodiff;
#[cfg(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
))]
pub mod backends;
pub mod choice;
pub mod conv;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
))]
pub mod devices;
pub mod distance;
pub mod distillation;
pub mod embedding;
#[cfg(feature = "flex")]
mod flex;
pub mod gate;
pub mod gelu;
pub mod linear;
pub mod matvec;
pub mod meter;
pub mod norm;
pub mod rotary;
pub mod rows_distance;
pub mod ssd;
pub mod step;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Element, Int, Tensor};

pub use adamw::{AdamWStep, adamw_step, squared_norm, squared_norms};
pub use attention::step::attention_step;
pub use attention::{attention, attention_matrix};
pub use choice::choose;
pub use conv::{ConvGradients, causal_conv};
pub use distance::{AttentionParts, TransferParts, mixing_distance, transfer_matrix};
pub use distillation::{DistillationWeights, cross_entropy, distillation_block, distillation_loss};
pub use embedding::embedding;
pub use gate::{GatedSkipGradients, gated_skip};
pub use gelu::gelu_new;
pub use linear::{linear, linear_gelu, linear_onto};
pub use matvec::{fan_in, fan_out};
pub use norm::layer_norm;
pub use rotary::{rotary, rotary_of_heads};
pub use rows_distance::rows_distance;
pub use ssd::{Epilogue, GatedScan, GatedScanGradients, ScanInputs, SsdGradients};
pub use ssd::{gated_scan, ssd_scan};
pub use step::{StepParameters, StepState, recurrent_step};

/// A Burn backend with this crate's ops.
///
/// Callers use the functions of the op modules ([`ssd_scan`], [`linear`], ...), which check shapes
/// and flatten leading dimensions; the methods here are what a backend may override.
pub trait KernelBackend: Backend {
    /// How many passes over different sequences it is best to run side by side, each on a share of
    /// the cores: as many as there are cores on a CPU, and one on a GPU, which a pass keeps busy.
    fn lanes() -> usize {
        1
    }

    /// Whether work is queued on a device and done later: reading a result then waits for all that was
    /// queued before it.
    fn queues() -> bool {
        false
    }

    /// Whether networks may have their parameters in `dtype`: the backend's own, and half precision where
    /// every op takes it and the device has it.
    fn holds(_device: &Self::Device, dtype: DType) -> bool {
        dtype == <Self::FloatElem as Element>::dtype()
    }

    /// The memory of `device` that this thread's tensors have; `None` where they have the host's.
    #[cfg(any(
        feature = "cuda",
        feature = "wgpu",
        feature = "flex",
        feature = "ndarray"
    ))]
    fn memory(_device: &Self::Device) -> Option<devices::Memory> {
        None
    }

    /// See [`linear`](linear()).
    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        linear::reference::forward(x, weight, bias)
    }

    /// See [`linear_gelu`].
    fn linear_gelu(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        Self::gelu_new_forward(Self::linear_forward(x, weight, bias))
    }

    /// See [`linear_onto`].
    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        residual + Self::linear_forward(x, weight, bias)
    }

    /// Gradients of [`KernelBackend::linear_forward`] to `x`, `weight` and `bias`, those that are wanted.
    fn linear_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        wanted: [bool; 3],
    ) -> linear::Gradients<Self> {
        linear::reference::backward(x, weight, dy, wanted)
    }

    /// See [`layer_norm`].
    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        norm::reference::forward(x, gamma, beta, epsilon)
    }

    /// Gradients of [`KernelBackend::layer_norm_forward`] to `x`, `gamma` and `beta`.
    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 3],
    ) -> norm::Gradients<Self> {
        norm::reference::backward(x, gamma, dy, epsilon, wanted)
    }

    /// See [`gelu_new`].
    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        gelu::reference::forward(x)
    }

    /// Gradient of [`KernelBackend::gelu_new_forward`] to `x`.
    fn gelu_new_backward(x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        gelu::reference::backward(x, dy)
    }

    /// See [`gated_skip`].
    fn gated_skip_forward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 3> {
        gate::reference::forward(y, x, d, z, z_bias)
    }

    /// Gradients of [`KernelBackend::gated_skip_forward`] to its inputs.
    fn gated_skip_backward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
        dout: Tensor<Self, 3>,
    ) -> GatedSkipGradients<Self> {
        gate::reference::backward(y, x, d, z, z_bias, dout)
    }

    /// See [`causal_conv`].
    fn causal_conv_forward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: conv::Activation,
    ) -> Tensor<Self, 3> {
        conv::reference::forward(x, weight, bias, history, activation)
    }

    /// Gradients of [`KernelBackend::causal_conv_forward`] to `x`, `weight`, `bias` and `history`.
    fn causal_conv_backward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: conv::Activation,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        conv::reference::backward(x, weight, bias, history, activation, dy, wanted)
    }

    /// See [`ssd_scan`].
    fn ssd_scan_forward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        ssd::reference::forward(x, a_log, b, c, initial_state, chunk)
    }

    /// Gradients of the scan's `y` to every input, from `dy [b,l,h,p]`.
    fn ssd_scan_backward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        ssd::reference::backward(x, a_log, b, c, initial_state, dy, chunk)
    }

    /// See [`gated_scan`].
    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        chunk: usize,
    ) -> GatedScan<Self> {
        ssd::gated::forward(scan, epilogue, chunk)
    }

    /// Gradients of [`KernelBackend::gated_scan_forward`] to its inputs, from that of `out` and the `y`
    /// that the forward pass gave.
    fn gated_scan_backward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        y: Option<Tensor<Self, 4>>,
        dout: Tensor<Self, 4>,
        chunk: usize,
    ) -> GatedScanGradients<Self> {
        let y = y.expect("the forward pass of this backend gives y");
        ssd::gated::backward(scan, epilogue, y, dout, chunk)
    }

    /// See [`recurrent_step`]. No gradient passes through it.
    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        step::reference::step(projected, parameters, state)
    }

    /// See [`fan_out`]. No gradient passes through it.
    fn fan_out(
        x: Tensor<Self, 2>,
        norm: matvec::Normalisation<Self>,
        projections: Vec<(matvec::Projection<Self>, matvec::Activation)>,
    ) -> Vec<Tensor<Self, 2>> {
        matvec::reference::fan_out(x, norm, projections)
    }

    /// See [`matvec::head`]. No gradient passes through it.
    fn head(
        x: Tensor<Self, 2>,
        norm: matvec::Normalisation<Self>,
        projection: matvec::Projection<Self>,
    ) -> Tensor<Self, 2> {
        matvec::reference::head(x, norm, projection)
    }

    /// See [`fan_in`]. No gradient passes through it.
    fn fan_in(
        x: Tensor<Self, 2>,
        inputs: Vec<(Tensor<Self, 2>, matvec::Projection<Self>)>,
    ) -> Tensor<Self, 2> {
        matvec::reference::fan_in(x, inputs)
    }

    /// See [`choose`].
    fn choose(
        _logits: Tensor<Self, 2>,
        _seen: Option<&mut Tensor<Self, 2, Int>>,
        _vocab_size: usize,
        _choices: &[choice::Choice],
    ) -> Option<Tensor<Self, 1, Int>> {
        None
    }

    /// See [`distillation_loss`].
    fn distillation_loss_forward(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> Tensor<Self, 1> {
        distillation::reference::forward(student, teacher, labels, weights)
    }

    /// [`KernelBackend::distillation_loss_forward`] with its gradient to the student's logits: one
    /// pass gives both, since the gradient of a scalar is known before anyone asks for it.
    fn distillation_loss_with_gradient(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        distillation::reference::with_gradient(student, teacher, labels, weights)
    }

    /// See [`distillation_block`]. No gradient passes through it.
    fn distillation_block(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        distillation::reference::block(student, teacher, labels, weights, tokens)
    }

    /// A scalar whose gradient to `y` is `dy`: where a backward pass begins that goes on from one done
    /// elsewhere. Its value means nothing.
    fn with_gradient<const D: usize>(y: Tensor<Self, D>, dy: Tensor<Self, D>) -> Tensor<Self, 1> {
        (y * dy).sum()
    }

    /// `x` times the one element of `by`, which may be wider than `x`, in the dtype of `x`.
    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        let (dtype, wide) = (x.dtype(), by.dtype());
        let x = ssd::reference::narrow(x, wide);
        ssd::reference::narrow(x * by.reshape([1; D]), dtype)
    }

    /// See [`rows_distance`](rows_distance()).
    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        rows_distance::reference::forward(a, b)
    }

    /// [`KernelBackend::rows_distance_forward`] with its gradient to `a`, in the dtype of `a`.
    fn rows_distance_with_gradient(
        a: Tensor<Self, 2>,
        b: Tensor<Self, 2>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        rows_distance::reference::with_gradient(a, b)
    }

    /// See [`embedding`](embedding()).
    fn embedding_forward(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        embedding::reference::forward(table, ids)
    }

    /// Gradient of [`KernelBackend::embedding_forward`] to its table of `v` rows.
    fn embedding_gradient(
        ids: Tensor<Self, 2, Int>,
        dy: Tensor<Self, 3>,
        v: usize,
    ) -> Tensor<Self, 2> {
        embedding::reference::gradient(ids, dy, v)
    }

    /// See [`rotary`](rotary()). Its backward pass is itself with the sines negated.
    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        rotary::reference::forward(x, cos, sin)
    }

    /// See [`rotary_of_heads`](rotary_of_heads()).
    fn rotary_of_heads(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
        heads: usize,
    ) -> Tensor<Self, 4> {
        rotary::reference::of_heads(x, cos, sin, heads)
    }

    /// See [`attention`](attention()).
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        attention::reference::forward(q, k, v)
    }

    /// Gradients of [`KernelBackend::attention_forward`] to queries, keys and values.
    fn attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        dy: Tensor<Self, 4>,
    ) -> attention::Gradients<Self> {
        attention::reference::backward(q, k, v, dy)
    }

    /// See [`matvec::rows`]. No gradient passes through it.
    fn rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        matvec::reference::rows(table, ids)
    }

    /// See [`attention_step`]. No gradient passes through it.
    fn attention_step(
        token: attention::step::NewToken<Self>,
        cache: Option<attention::step::Cache<Self>>,
        h: usize,
    ) -> (Tensor<Self, 2>, attention::step::Cache<Self>) {
        attention::step::reference::step(token, cache, h)
    }

    /// See [`attention_matrix`].
    fn attention_matrix(q: Tensor<Self, 4>, k: Tensor<Self, 4>) -> Tensor<Self, 4> {
        attention::reference::matrix(q, k)
    }

    /// See [`mixing_distance`].
    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        distance::reference::forward(student, teacher)
    }

    /// [`KernelBackend::mixing_distance_forward`] with its gradients to the student's parts, each in
    /// that part's shape.
    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        distance::reference::with_gradients(student, teacher)
    }

    /// See [`adamw_step`]. No gradient passes through it.
    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        adamw::reference::step(parameter, gradient, moments, scale, step)
    }

    /// The sum of the squares of `x`, as a tensor of one element.
    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        adamw::reference::squared_norm(x)
    }

    /// See [`squared_norms`].
    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        adamw::reference::squared_norms(xs)
    }
}

/// A [`KernelBackend`] that differentiates, over an inner one for what needs no gradient.
pub trait TrainBackend: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}

impl<B> TrainBackend for B where B: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}

#[cfg(feature = "ndarray")]
impl<E, I, Q> KernelBackend for burn_ndarray::NdArray<E, I, Q>
where
    E: burn_ndarray::FloatNdArrayElement,
    I: burn_ndarray::IntNdArrayElement,
    Q: burn_ndarray::QuantElement,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>>,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<I>>,
{
    fn lanes() -> usize {
        rayon::current_num_threads()
    }
}
