//! The tensor-core variant, and which inputs it takes. One cube goes over the chunks of a segment of a head, one after the
//! other, with the state in its registers. So every input is read once and every output is written once. The comments
//! call this loop a *walk*.
//!
//! Where batch times heads alone keep the device busy, a segment is the whole sequence. Otherwise ([`segments`]) a first
//! walk finds what each segment adds to the state, and [`pass_states`](super::portable::pass_states) what enters it.

mod backward;
mod chunk_decays;
mod copies;
mod epilogue;
mod epilogue_gradients;
mod forward;
mod loads;
mod product;
mod segments;
mod staged;
mod staged_backward;
mod staged_outputs;
mod staged_states;
mod tile;
mod walks;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::{MmaConfig, Plane};
use cubecl::ir::{ElemType, FloatKind};

use self::forward::{CHUNK, Emit};
use self::product::PLANE;
use self::segments::{BACKWARD, FORWARD, Price};
use self::walks::Walks;
use super::{Gradients, Inputs};

/// Whether the device has what the walks need, and the inputs are of sizes and places that they take.
pub(super) fn take<R: CubeRuntime>(inputs: &Inputs<R>) -> bool {
    let x = &inputs.x_blhp;
    let kind = match x.dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => return false,
    };
    let (p, n) = state_sizes(inputs);
    let (element, sum) = (ElemType::Float(kind), ElemType::Float(FloatKind::F32));
    let properties = x.client.properties();
    let (features, hardware) = (&properties.features, &properties.hardware);
    let config = MmaConfig {
        a_type: element.into(),
        b_type: element.into(),
        cd_type: sum.into(),
        m: 16,
        n: 8,
        k: 16,
    };
    features.matmul.mma.contains(&config)
        && features.matmul.ldmatrix.contains(&element.into())
        && features.plane.contains(Plane::Ops)
        && [hardware.plane_size_min, hardware.plane_size_max] == [32; 2]
        && hardware.max_units_per_cube as usize >= backward::PLANES * PLANE
        && hardware.max_shared_memory_size >= shared_memory(p, n)
        && [p, n].iter().all(|size| [16, 32, 64, 128].contains(size))
        && [x, &inputs.b_blgn, &inputs.c_blgn].into_iter().all(aligned)
        && inputs.epilogue.z_blc.iter().all(aligned)
}

/// Whether a tensor can be read in vectors of eight.
fn aligned<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let last = shape.num_dims() - 1;
    strides[last] == 1 && (0..last).all(|i| shape[i] == 1 || strides[i].is_multiple_of(8))
}

/// Bytes that a walk back through a gate needs, which needs most.
fn shared_memory(p: usize, n: usize) -> usize {
    let tokens = CHUNK * (4 * (p + 8) + 2 * (n + 8));
    let states = 2 * p * (n + 8);
    let scores = 3 * CHUNK * (CHUNK + 8);
    2 * (tokens + states + scores) + 4 * (16 * CHUNK + 4 * p + 34)
}

/// What a walk forwards gives.
pub(super) struct Scanned<R: CubeRuntime> {
    /// The outputs, `[b, l, h, p]`.
    pub y: CubeTensor<R>,
    /// The state after the last token, `[b, h, p, n]`.
    pub last: CubeTensor<R>,
    /// The states that enter the chunks, `[b * h, chunks, p, n]`, where they are kept.
    pub states: Option<CubeTensor<R>>,
}

/// The scan; `keep` its states, for the backward pass.
pub(super) fn forward<R: CubeRuntime>(inputs: &Inputs<R>, keep: bool) -> Scanned<R> {
    let scan = Walks::new(inputs, price_forward(inputs));
    let (entering, last) = scan.entering();
    let y = scan.empty(inputs.x_blhp.meta.shape().dims::<4>(), inputs.x_blhp.dtype);
    let states = keep.then(|| scan.states_of_chunks());
    let ends = scan.walk(Emit::Outputs, &y, states.as_ref(), entering);
    Scanned {
        y,
        last: last.unwrap_or(ends),
        states,
    }
}

/// The gradients of `sum(y * dy)`; those of B and C for each head where a group has several. From the states that
/// [`forward`] kept, if it did; otherwise they are computed again.
pub(super) fn backward<R: CubeRuntime>(
    inputs: &Inputs<R>,
    dy_blhp: &CubeTensor<R>,
    kept: Option<CubeTensor<R>>,
) -> Gradients<R> {
    let dy = if aligned(dy_blhp) {
        dy_blhp.clone()
    } else {
        into_contiguous(dy_blhp.clone())
    };
    let scan = Walks::new(inputs, BACKWARD);
    let states = kept.unwrap_or_else(|| {
        let (entering, _) = scan.entering();
        let states = scan.states_of_chunks();
        scan.walk(Emit::States, &states, None, entering);
        states
    });
    scan.walk_back(&dy, states)
}

/// What a walk for outputs costs, of which a multiprocessor holds more cubes where it copies its inputs ahead.
fn price_forward<R: CubeRuntime>(inputs: &Inputs<R>) -> Price {
    let gate = inputs.epilogue.z_blc.is_some();
    if copies_ahead(inputs, false, gate) {
        let (p, n) = state_sizes(inputs);
        let held = staged::held(p, n, gate);
        Price { held, ..FORWARD }
    } else {
        FORWARD
    }
}

/// Features and state's size of a head.
fn state_sizes<R: CubeRuntime>(inputs: &Inputs<R>) -> (usize, usize) {
    (inputs.x_blhp.meta.shape()[3], inputs.b_blgn.meta.shape()[3])
}

/// Whether a walk copies the inputs of the next chunk to shared memory in advance ([`staged`]); otherwise it reads them
/// into registers.
fn copies_ahead<R: CubeRuntime>(inputs: &Inputs<R>, backwards: bool, gate: bool) -> bool {
    let properties = inputs.x_blhp.client.properties();
    let (p, n) = state_sizes(inputs);
    // The gradients of gated outputs must be multiplied by the gate before they are in shared memory, so they cannot be
    // copied directly.
    let ungates = backwards && gate;
    properties.features.copy_async
        && properties.hardware.max_shared_memory_size >= staged::shared_memory(p, n, gate)
        && staged::takes(p, n)
        && !ungates
}
