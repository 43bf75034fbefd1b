//! The scan as CubeCL kernels, from one source for CUDA and wgpu.
//!
//! # The steps
//!
//! First, the contribution of each chunk to the state is computed as if the state before it were zero (2). Then one
//! pass over the chunks turns these contributions into the states that enter the chunks (3). After that, all chunks are
//! independent: (1) and (4) together give the outputs. The backward pass does the same three things from the last chunk
//! to the first. Let `S` be the state that enters a chunk, `D` the gradient of the state that leaves it, `L[t, s]` the
//! product of the decays in `(s, t]`, `in_t` the product from the chunk's start through t, and `out_s` the product
//! after s to the chunk's end. Then
//!
//! ```text
//! y_t  = sum_(s<=t) L[t,s] (C_t.B_s)  x_s   + in_t  S C_t
//! dC_t = sum_(s<=t) L[t,s] (dy_t.x_s) B_s   + in_t  S^T dy_t
//! dx_s = sum_(t>=s) L[t,s] (B_s.C_t)  dy_t  + out_s D B_s
//! dB_s = sum_(t>=s) L[t,s] (x_s.dy_t) C_t   + out_s D^T x_s
//! D of the chunk before = (all decays) D + sum_t in_t dy_t C_t^T
//! ```
//!
//! and the log-decay of token k, which is part of every path from a token before k to a token at or after k, has the
//! gradient
//!
//! ```text
//! sum_(t>=k>s) L[t,s] (C_t.B_s) (dy_t.x_s) + sum_(t>=k) in_t dy_t.S C_t
//!                                          + sum_(s<k) out_s x_s.D B_s + (all decays) <S, D>
//! ```
//!
//! # The variants
//!
//! - [`portable`] needs shared memory and barriers only, and takes any sizes: one kernel, which works on square blocks,
//!   computes the first four equations above.
//! - [`tensor_cores`] runs on tensor cores, for 16-bit inputs of the usual sizes: a cube walks from chunk to
//!   chunk of a head, the state in its registers. It applies the skip and the gate to outputs that it has in
//!   registers, and the backward pass computes those outputs again.
//!
//! The properties of the device decide which variant is used. The square matrices of a chunk stay inside its cube:
//! besides inputs and results, device memory holds only one state for each chunk. The order of all sums is fixed, so
//! that two runs give the same bits.

mod decay;
mod portable;
mod shares;
mod tensor_cores;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::{GatedScan, GatedScanGradients, ScanInputs, SsdGradients, SsdScan, gated, reference};
use crate::cube::{computes_in_f32, inner, tensor};
use crate::groups;

impl<R, F, I, T> SsdScan for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn ssd_scan_forward(
        scan: ScanInputs<Self>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        forward(scan, chunk)
    }

    fn ssd_scan_backward(
        scan: ScanInputs<Self>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        backward(scan, dy, chunk)
    }

    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: super::Epilogue<Self>,
        chunk: usize,
        keep: bool,
    ) -> GatedScan<Self> {
        gated_forward(scan, epilogue, chunk, keep)
    }

    fn gated_scan_backward(
        scan: ScanInputs<Self>,
        epilogue: super::Epilogue<Self>,
        kept: Option<Tensor<Self, 4>>,
        dout: Tensor<Self, 4>,
        chunk: usize,
    ) -> GatedScanGradients<Self> {
        gated_backward(scan, epilogue, kept, dout, chunk)
    }
}

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
    epilogue: Epilogue<R>,
}

/// The operations on the outputs; only [`tensor_cores`] applies them in the scan itself.
#[derive(Clone)]
struct Epilogue<R: CubeRuntime> {
    /// f32, without gaps.
    d_h: Option<CubeTensor<R>>,
    /// Of the dtype of x.
    z_blc: Option<CubeTensor<R>>,
    /// f32, without gaps.
    z_bias_c: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Default for Epilogue<R> {
    fn default() -> Self {
        Self {
            d_h: None,
            z_blc: None,
            z_bias_c: None,
        }
    }
}

impl<R: CubeRuntime> Epilogue<R> {
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor<R>>>(of: super::Epilogue<B>) -> Self {
        let parameter = |x: Tensor<B, 1>| into_contiguous(inner(x.cast(DType::F32)));
        Self {
            d_h: of.d.map(parameter),
            z_blc: of.z.map(inner),
            z_bias_c: of.z_bias.map(parameter),
        }
    }
}

/// The gradients to [`Inputs`], of the same dtypes; or, where heads share a group, those to B and C may
/// still be apart for each head, and in f32.
struct Gradients<R: CubeRuntime> {
    x_blhp: CubeTensor<R>,
    b_blgn: CubeTensor<R>,
    c_blgn: CubeTensor<R>,
    a_log_blh: CubeTensor<R>,
    initial_bhpn: CubeTensor<R>,
    /// Where there is a gate.
    z_blhp: Option<CubeTensor<R>>,
    /// What each segment adds to the gradients of the gate's bias (in place `0..p` of each head) and of
    /// the skip (in place p): `[b, h, segments, p + 1]`, f32. `None` without an epilogue.
    shares_bhsf: Option<CubeTensor<R>>,
}

/// Whether the kernels take inputs of these dtypes: all of one, f32 or narrower.
fn taken(dtypes: &[DType]) -> bool {
    let first = dtypes[0];
    computes_in_f32(first) && dtypes.iter().all(|d| *d == first)
}

impl<R: CubeRuntime> Inputs<R> {
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor<R>>>(
        scan: ScanInputs<B>,
        epilogue: Epilogue<R>,
    ) -> Self {
        Self {
            x_blhp: inner(scan.x),
            b_blgn: inner(scan.b),
            c_blgn: inner(scan.c),
            a_log_blh: inner(scan.a_log.cast(DType::F32)),
            initial_bhpn: scan
                .initial_state
                .map(|state| inner(state.cast(DType::F32))),
            epilogue,
        }
    }
}

/// See [`ssd_scan`](super::ssd_scan).
fn forward<R, B>(scan: ScanInputs<B>, chunk: usize) -> (Tensor<B, 4>, Tensor<B, 4>)
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if !taken(&[scan.x.dtype(), scan.b.dtype(), scan.c.dtype()]) {
        return reference::forward(scan, chunk);
    }
    let inputs = Inputs::new(scan, Epilogue::default());
    let (y, last) = if tensor_cores::take(&inputs) {
        let scanned = tensor_cores::forward(&inputs, false);
        (scanned.y, scanned.last)
    } else {
        portable::forward(&inputs)
    };
    (tensor(y), tensor(last))
}

/// The gradients of `sum(y * dy)`. The states are computed again, so that nothing but the inputs is
/// kept from the forward pass.
fn backward<R, B>(scan: ScanInputs<B>, dy: Tensor<B, 4>, chunk: usize) -> SsdGradients<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if !taken(&[scan.x.dtype(), scan.b.dtype(), scan.c.dtype(), dy.dtype()]) {
        return reference::backward(scan, dy, chunk);
    }
    let like = Like::new(&scan);
    let inputs = Inputs::new(scan, Epilogue::default());
    let dy = inner(dy);
    like.scan_gradients(if tensor_cores::take(&inputs) {
        tensor_cores::backward(&inputs, &dy, None)
    } else {
        portable::backward(&inputs, &dy)
    })
}

/// See [`gated_scan`](super::gated_scan): in one walk where the device and the inputs allow it, which then
/// keeps the states for the backward pass, if one will follow; otherwise as two ops.
fn gated_forward<R, B>(
    scan: ScanInputs<B>,
    epilogue: super::Epilogue<B>,
    chunk: usize,
    keep: bool,
) -> GatedScan<B>
where
    R: CubeRuntime,
    B: SsdScan + Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    match in_one_walk(&scan, &epilogue) {
        Some(inputs) => {
            let scanned = tensor_cores::forward(&inputs, keep);
            GatedScan {
                out: tensor(scanned.y),
                state: tensor(scanned.last),
                kept: scanned.states.map(tensor),
            }
        }
        None => gated::forward(scan, epilogue, chunk),
    }
}

/// The inputs of a walk that applies the epilogue, if there is a kernel for them.
fn in_one_walk<R, B>(scan: &ScanInputs<B>, epilogue: &super::Epilogue<B>) -> Option<Inputs<R>>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let (x, b, c) = (scan.x.dtype(), scan.b.dtype(), scan.c.dtype());
    let z = epilogue.z.as_ref().map_or(x, Tensor::dtype);
    if !taken(&[x, b, c, z]) {
        return None;
    }
    let inputs = Inputs::new(scan.clone(), Epilogue::new(epilogue.clone()));
    tensor_cores::take(&inputs).then_some(inputs)
}

/// The gradients of `sum(out * dout)`, from what [`gated_forward`] kept.
fn gated_backward<R, B>(
    scan: ScanInputs<B>,
    epilogue: super::Epilogue<B>,
    kept: Option<Tensor<B, 4>>,
    dout: Tensor<B, 4>,
    chunk: usize,
) -> GatedScanGradients<B>
where
    R: CubeRuntime,
    B: SsdScan + Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let Some(inputs) = in_one_walk(&scan, &epilogue) else {
        let y = kept.expect("the forward pass of two ops returns y");
        return gated::backward(scan, epilogue, y, dout, chunk);
    };
    let like = Like::new(&scan);
    let [b, l, h, p] = scan.x.dims();
    let dtype_of = |x: &Option<Tensor<B, 1>>| x.as_ref().map(Tensor::dtype);
    let (d, z_bias) = (dtype_of(&epilogue.d), dtype_of(&epilogue.z_bias));
    let dout = inner(dout.cast(scan.x.dtype()));
    let mut gradients = tensor_cores::backward(&inputs, &dout, kept.map(inner));
    let z = gradients.z_blhp.take();
    let [d, z_bias] = match gradients.shares_bhsf.take() {
        Some(shares) => shares::add(shares, [d, z_bias]),
        None => [None, None],
    };
    GatedScanGradients {
        scan: like.scan_gradients(gradients),
        d: d.map(tensor),
        z: z.map(|z| tensor::<R, B, 4>(z).reshape([b, l, h * p])),
        z_bias: z_bias.map(tensor),
    }
}

/// The dtypes and the number of groups that the gradients take from the inputs.
struct Like {
    dtype: DType,
    a_log_dtype: DType,
    groups: usize,
}

impl Like {
    fn new<B: Backend>(scan: &ScanInputs<B>) -> Self {
        Self {
            dtype: scan.x.dtype(),
            a_log_dtype: scan.a_log.dtype(),
            groups: scan.b.dims()[2],
        }
    }

    fn scan_gradients<R, B>(self, gradients: Gradients<R>) -> SsdGradients<B>
    where
        R: CubeRuntime,
        B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    {
        let to_groups = |x: CubeTensor<R>| {
            let heads = tensor::<R, B, 4>(x);
            groups::to_groups(heads, self.groups).cast(self.dtype)
        };
        SsdGradients {
            x: tensor(gradients.x_blhp),
            a_log: tensor::<R, B, 3>(gradients.a_log_blh).cast(self.a_log_dtype),
            b: to_groups(gradients.b_blgn),
            c: to_groups(gradients.c_blgn),
            initial_state: tensor(gradients.initial_bhpn),
        }
    }
}
