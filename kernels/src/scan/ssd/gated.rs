//! The scan together with the operations after it in the mixer, the skip `D x` and the gate `silu(z + z_bias)`, as one
//! op. A backend can apply them to outputs that are still in registers, which saves a read and a write of all outputs.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{ScanInputs, SsdGradients, SsdScan, check};
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};
use crate::scan::skip_gate::{SkipGateGradients, SkipGateInputs};

/// The operations on the scan's output `y`: `(y + d x) * silu(z + z_bias)`, without the parts that are absent.
#[derive(Debug, Clone)]
pub struct Epilogue<B: Backend> {
    /// The skip, `[h]`.
    pub d: Option<Tensor<B, 1>>,
    /// The gate, `[b, l, h * p]`.
    pub z: Option<Tensor<B, 3>>,
    /// `[h * p]`; only with `z`.
    pub z_bias: Option<Tensor<B, 1>>,
}

/// What a backend computes for [`gated_scan`].
#[derive(Debug, Clone)]
pub struct GatedScan<B: Backend> {
    /// `[b, l, h, p]`.
    pub out: Tensor<B, 4>,
    /// The state after the last token, `[b, h, p, n]`.
    pub state: Tensor<B, 4>,
    /// What the forward pass keeps for the backward pass: the outputs before the epilogue, `[b, l, h, p]`, or another
    /// tensor, as the backend needs it. `None` if the backward pass computes it again.
    pub kept: Option<Tensor<B, 4>>,
}

/// Gradients of [`gated_scan`], each in its input's shape; `None` for what was absent.
#[derive(Debug, Clone)]
pub struct GatedScanGradients<B: Backend> {
    /// To the scan's inputs.
    pub scan: SsdGradients<B>,
    /// To the skip, `[h]`.
    pub d: Option<Tensor<B, 1>>,
    /// To the gate, `[b, l, h * p]`.
    pub z: Option<Tensor<B, 3>>,
    /// To the gate's bias, `[h * p]`.
    pub z_bias: Option<Tensor<B, 1>>,
}

/// [`ssd_scan`](super::ssd_scan) through `epilogue`: `[b, l, h, p]` and the state after the last token, which is
/// returned detached, as by `ssd_scan`.
///
/// # Panics
/// As `ssd_scan`; and if the epilogue's shapes are not those above, or there is a `z_bias` without `z`.
pub fn gated_scan<B: SsdScan>(
    scan: ScanInputs<B>,
    epilogue: Epilogue<B>,
    chunk: usize,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    check(&scan, chunk);
    let [b, l, h, p] = scan.x.dims();
    let mut dtypes = vec![scan.x.dtype()];
    dtypes.extend(epilogue.d.as_ref().map(Tensor::dtype));
    dtypes.extend(epilogue.z.as_ref().map(Tensor::dtype));
    dtypes.extend(epilogue.z_bias.as_ref().map(Tensor::dtype));
    assert_one_width("gated_scan", &dtypes);
    if let Some(d) = &epilogue.d {
        assert_eq!(d.dims(), [h], "gated_scan: d must have one element a head");
    }
    if let Some(z) = &epilogue.z {
        let gate = [b, l, h * p];
        assert_eq!(z.dims(), gate, "gated_scan: z must be [b, l, h * p]");
    }
    if let Some(bias) = &epilogue.z_bias {
        assert!(epilogue.z.is_some(), "gated_scan: z_bias needs a z");
        let width = [h * p];
        assert_eq!(bias.dims(), width, "gated_scan: z_bias must be [h * p]");
    }
    let scanned = timed(Kind::Scan, || {
        B::gated_scan_forward(scan, epilogue, chunk.min(l), false)
    });
    (scanned.out, scanned.state)
}

/// Computes the gated scan by its two ops, scan and skip-gate. The scan's output is kept for the backward pass.
pub fn forward<B: SsdScan>(
    scan: ScanInputs<B>,
    epilogue: Epilogue<B>,
    chunk: usize,
) -> GatedScan<B> {
    let x = scan.x.clone();
    let (y, state) = B::ssd_scan_forward(scan, chunk);
    let shape = y.dims();
    let Epilogue { d, z, z_bias } = epilogue;
    let out = match (d, z) {
        (d, Some(z)) => {
            let d = d.unwrap_or_else(|| no_skip(&x));
            let y = y.clone();
            B::skip_gate_forward(SkipGateInputs { y, x, d, z, z_bias }).reshape(shape)
        }
        (Some(d), None) => y.clone() + x * d.reshape([1, 1, shape[2], 1]),
        (None, None) => y.clone(),
    };
    GatedScan {
        out,
        state,
        kept: Some(y),
    }
}

/// The gradients of `sum(out * dout)`, by those of the two ops, from the `y` that [`forward`] kept.
pub fn backward<B: SsdScan>(
    scan: ScanInputs<B>,
    epilogue: Epilogue<B>,
    y: Tensor<B, 4>,
    dout: Tensor<B, 4>,
    chunk: usize,
) -> GatedScanGradients<B> {
    let [b, l, h, p] = y.dims();
    let x = scan.x.clone();
    let Epilogue { d, z, z_bias } = epilogue;
    let (skips, has_bias) = (d.is_some(), z_bias.is_some());
    let (dy, dx, dd, dz, dz_bias) = match (d, z) {
        (d, Some(z)) => {
            let d = d.unwrap_or_else(|| no_skip(&x));
            let dout = dout.reshape([b, l, h * p]);
            let gradients = B::skip_gate_backward(SkipGateInputs { y, x, d, z, z_bias }, dout);
            let SkipGateGradients { y, x, d, z, z_bias } = gradients;
            (
                y,
                skips.then_some(x),
                skips.then_some(d),
                Some(z),
                has_bias.then_some(z_bias),
            )
        }
        (Some(d), None) => {
            let dd = (dout.clone() * x).sum_dim(3).sum_dim(1).sum_dim(0);
            let dx = dout.clone() * d.reshape([1, 1, h, 1]);
            (dout, Some(dx), Some(dd.reshape([h])), None, None)
        }
        (None, None) => (dout, None, None, None, None),
    };
    let mut gradients = B::ssd_scan_backward(scan, dy, chunk);
    if let Some(dx) = dx {
        gradients.x = gradients.x + dx;
    }
    GatedScanGradients {
        scan: gradients,
        d: dd,
        z: dz,
        z_bias: dz_bias,
    }
}

/// A skip of zero, for an epilogue without `d`.
fn no_skip<B: Backend>(x: &Tensor<B, 4>) -> Tensor<B, 1> {
    Tensor::zeros([x.dims()[2]], (&x.device(), x.dtype()))
}
