//! In CubeCL kernels, one source for CUDA and wgpu.
//!
//! # The steps
//!
//! Each chunk's share of the state is computed from nothing (2), one pass over the chunks turns the
//! shares into the states that enter (3), and then every chunk is independent: (1) and (4) together
//! give the outputs. Backwards it is the same three moves from the end: with `S` the state that enters
//! a chunk, `D` the gradient of the one that leaves it, `L[t, s]` the product of the decays in
//! `(s, t]`, `in_t` and `out_s` those from the chunk's start through t and after s to its end,
//!
//! ```text
//! y_t  = sum_(s<=t) L[t,s] (C_t.B_s)  x_s   + in_t  S C_t
//! dC_t = sum_(s<=t) L[t,s] (dy_t.x_s) B_s   + in_t  S^T dy_t
//! dx_s = sum_(t>=s) L[t,s] (B_s.C_t)  dy_t  + out_s D B_s
//! dB_s = sum_(t>=s) L[t,s] (x_s.dy_t) C_t   + out_s D^T x_s
//! D of the chunk before = (all decays) D + sum_t in_t dy_t C_t^T
//! ```
//!
//! and the log-decay of token k, which is in every path from a token before k to one at k or after it,
//! has the gradient
//!
//! ```text
//! sum_(t>=k>s) L[t,s] (C_t.B_s) (dy_t.x_s) + sum_(t>=k) in_t dy_t.S C_t
//!                                          + sum_(s<k) out_s x_s.D B_s + (all decays) <S, D>
//! ```
//!
//! # The variants
//!
//! - [`blocked`] needs shared memory and barriers only, and takes any sizes: the four rows above are one
//!   kernel, which works on square blocks.
//! - [`walks`] runs on tensor cores, for 16-bit inputs of the usual sizes: a cube walks from chunk to
//!   chunk of a head, the state in its registers.
//!
//! The device's properties choose. Nothing of a chunk's square matrices leaves its cube: device memory
//! holds one state a chunk besides inputs and results. Sums run in one order, so that two runs give the
//! same bits.

mod blocked;
mod decay;
mod decay_gradient;
mod matrix;
mod outputs;
mod states;
mod tile;
mod walk;
mod walk_back;
mod walks;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::{SsdGradients, reference};
use crate::cube::{inner, tensor};

/// The scan's inputs on the device, of dtypes that the kernels take.
struct Inputs<R: CubeRuntime> {
    x_blhp: CubeTensor<R>,
    /// The other two of the dtype of `x_blhp`.
    b_blgn: CubeTensor<R>,
    c_blgn: CubeTensor<R>,
    /// f32.
    a_log_blh: CubeTensor<R>,
    /// f32.
    initial_bhpn: Option<CubeTensor<R>>,
}

/// The gradients to [`Inputs`], of the same dtypes; or, where heads share a group, those to B and C may
/// still be apart for each head, and in f32.
struct Gradients<R: CubeRuntime> {
    x_blhp: CubeTensor<R>,
    b_blgn: CubeTensor<R>,
    c_blgn: CubeTensor<R>,
    a_log_blh: CubeTensor<R>,
    initial_bhpn: CubeTensor<R>,
}

/// Whether the kernels take inputs of these dtypes: all of one, f32 or narrower.
fn taken(dtypes: &[DType]) -> bool {
    let first = dtypes[0];
    matches!(first, DType::F32 | DType::F16 | DType::BF16) && dtypes.iter().all(|d| *d == first)
}

impl<R: CubeRuntime> Inputs<R> {
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor<R>>>(
        x: Tensor<B, 4>,
        a_log: Tensor<B, 3>,
        b: Tensor<B, 4>,
        c: Tensor<B, 4>,
        initial_state: Option<Tensor<B, 4>>,
    ) -> Self {
        Self {
            x_blhp: inner(x),
            b_blgn: inner(b),
            c_blgn: inner(c),
            a_log_blh: inner(a_log.cast(DType::F32)),
            initial_bhpn: initial_state.map(|state| inner(state.cast(DType::F32))),
        }
    }
}

/// See [`ssd_scan`](super::ssd_scan).
pub(crate) fn forward<R, B>(
    x: Tensor<B, 4>,
    a_log: Tensor<B, 3>,
    b: Tensor<B, 4>,
    c: Tensor<B, 4>,
    initial_state: Option<Tensor<B, 4>>,
    chunk: usize,
) -> (Tensor<B, 4>, Tensor<B, 4>)
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if !taken(&[x.dtype(), b.dtype(), c.dtype()]) {
        return reference::forward(x, a_log, b, c, initial_state, chunk);
    }
    let inputs = Inputs::new(x, a_log, b, c, initial_state);
    let (y, last) = match walks::take(&inputs) {
        true => walks::forward(&inputs),
        false => blocked::forward(&inputs),
    };
    (tensor(y), tensor(last))
}

/// The gradients of `sum(y * dy)`. The states are computed again, so that nothing but the inputs is
/// kept from the forward pass.
pub(crate) fn backward<R, B>(
    x: Tensor<B, 4>,
    a_log: Tensor<B, 3>,
    b: Tensor<B, 4>,
    c: Tensor<B, 4>,
    initial_state: Option<Tensor<B, 4>>,
    dy: Tensor<B, 4>,
    chunk: usize,
) -> SsdGradients<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if !taken(&[x.dtype(), b.dtype(), c.dtype(), dy.dtype()]) {
        return reference::backward(x, a_log, b, c, initial_state, dy, chunk);
    }
    let (dtype, a_log_dtype) = (x.dtype(), a_log.dtype());
    let groups = b.dims()[2];
    let inputs = Inputs::new(x, a_log, b, c, initial_state);
    let dy = inner(dy);
    let gradients = match walks::take(&inputs) {
        true => walks::backward(&inputs, &dy),
        false => blocked::backward(&inputs, &dy),
    };
    let to_groups = |x: CubeTensor<R>| {
        let heads = tensor::<R, B, 4>(x);
        reference::to_groups(heads, groups).cast(dtype)
    };
    SsdGradients {
        x: tensor(gradients.x_blhp),
        a_log: tensor::<R, B, 3>(gradients.a_log_blh).cast(a_log_dtype),
        b: to_groups(gradients.b_blgn),
        c: to_groups(gradients.c_blgn),
        initial_state: tensor(gradients.initial_bhpn),
    }
}
