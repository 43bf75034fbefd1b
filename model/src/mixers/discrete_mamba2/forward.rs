//! From the layer's input to what the scan reads, and the scan over whole sequences.

use burn::module::Param;
use burn::tensor::Tensor;
use kernels::decode::projections::Form;
use kernels::scan::causal_conv::{Activation as ConvActivation, ConvInputs};
use kernels::{DocumentStarts, Epilogue, KernelBackend, ScanInputs, TransferParts};

use super::{Activation, DiscreteMamba2, Parts, Rows, Turned};
use crate::layers::Norm;
use crate::mixers::rotary::{Positions, Rotary};
use crate::precision::{to_dtype, widen};
use crate::sequences::Sequences;

impl<B: KernelBackend> DiscreteMamba2<B> {
    /// What the output projection reads, `[b, l, d_inner]`.
    ///
    /// # Panics
    /// If there are documents and the state is reset every so many tokens, which is for inference.
    pub(crate) fn gated(&self, sequences: impl Into<Sequences<B>>) -> Tensor<B, 3> {
        let Sequences { u, documents } = sequences.into();
        if self.reset_every.is_some() {
            assert!(
                documents.is_none(),
                "a state that is reset every so many tokens does not begin anew at documents too"
            );
            let mut state = self.empty_state(u.dims()[0], &u.device());
            return self.read(self.in_proj.forward(u), &mut state);
        }
        // Rows of a weight in bits would become floats anew for each part.
        let by_columns = B::queues() || self.in_proj.form() != Form::Float;
        let parts = if by_columns {
            self.parts_by_columns(u, &documents)
        } else {
            self.parts_by_rows(u, &documents)
        };
        let positions = Positions::of(&documents);
        let scan = ScanInputs {
            x: self.x_at(parts.x, positions),
            a_log: cut(self.a_log(parts.a_log), &documents),
            b: self.b_at(parts.b, parts.b_gate, positions),
            c: self.c_at(parts.c, positions),
            initial_state: None,
        };
        let (gated_blhp, _) = self.gated_scan(scan, parts.z);
        self.joined(gated_blhp)
    }

    /// What the scan and the gate read of `u [b, l, d_model]`, by a product and a convolution for each: on a CPU,
    /// where the gradients of the weight's slices cost less than copies of activations.
    fn parts_by_rows(&self, u: Tensor<B, 3>, documents: &Option<DocumentStarts<B>>) -> Parts<B> {
        Parts {
            x: self.convolved(u.clone(), self.x_rows(), documents),
            b: self.convolved(u.clone(), self.b_rows(), documents),
            c: self.convolved(u.clone(), self.c_rows(), documents),
            z: self.projected(u.clone(), self.z_rows()),
            b_gate: self.projected_gate(&u),
            a_log: self.projected(u, self.a_log_rows()),
        }
    }

    /// The same by one product and one convolution: on a GPU, where each launch costs and wide products are the
    /// faster ones, forward and backward.
    fn parts_by_columns(&self, u: Tensor<B, 3>, documents: &Option<DocumentStarts<B>>) -> Parts<B> {
        let (d_inner, d_bc, h) = (self.d_inner, self.config.d_bc(), self.config.n_v_heads);
        let gates = self.config.n_b_gates();
        let widths = [self.conv_dim(), d_inner, h + gates];
        let [xbc, z, rest] = kernels::split_columns(self.in_proj.forward_aligned(u), widths);
        let (a_log, b_gate) = if gates > 0 {
            let a_log = rest.clone().narrow(2, 0, h);
            (a_log, Some(rest.narrow(2, h, gates)))
        } else {
            (rest, None)
        };
        let convolved = kernels::causal_conv_of(ConvInputs {
            x: xbc,
            weight: self.taps(),
            bias: self.conv1d.bias.as_ref().map(Param::val),
            history: None,
            activation: self.activation(),
            documents: documents.clone(),
        });
        let [x, b, c] = kernels::split_columns(convolved, [d_inner, d_bc, d_bc]);
        Parts {
            x,
            b,
            c,
            z,
            a_log,
            b_gate,
        }
    }

    /// The factors of the mixing matrix: B, C, A_log and D alone are computed.
    pub(super) fn matrix_parts(&self, sequences: Sequences<B>) -> TransferParts<B> {
        let Sequences { u, documents } = sequences;
        let positions = Positions::of(&documents);
        let b_blgn = self.convolved(u.clone(), self.b_rows(), &documents);
        let c_blgn = self.convolved(u.clone(), self.c_rows(), &documents);
        let b_gate = self.projected_gate(&u);
        let a_log = self.a_log(self.projected(u, self.a_log_rows()));
        TransferParts {
            b: self.b_at(b_blgn, b_gate, positions),
            c: self.c_at(c_blgn, positions),
            a_log: cut(a_log, &documents),
            d: self.d.val(),
        }
    }

    /// The convolved x `[b, l, d_inner]`, as the scan reads it, `[b, l, h, p]`.
    pub(super) fn x_at(&self, x: Tensor<B, 3>, positions: Positions<'_, B>) -> Tensor<B, 4> {
        self.turned(self.heads(x), positions, &[Turned::XAndB])
    }

    /// What the gates of B are made of in `u [b, l, d_model]`, `[b, l, g]`.
    pub(super) fn projected_gate(&self, u: &Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let rows = self.b_gate_rows()?;
        Some(self.projected(u.clone(), rows))
    }

    /// The convolved B `[b, l, g * n]`, times its gates if it has any, as the scan reads it, `[b, l, g, n]`.
    pub(super) fn b_at(
        &self,
        b: Tensor<B, 3>,
        gate_blg: Option<Tensor<B, 3>>,
        positions: Positions<'_, B>,
    ) -> Tensor<B, 4> {
        let b_blgn = normed(&self.b_norm, self.groups(b));
        let mut b_blgn = self.config.feature_map.of(b_blgn);
        if let Some(gate_blg) = gate_blg {
            // 2 sigmoid(v), which Burn would compute in f32 whatever the dtype.
            let gate_blg = widen(gate_blg).mul_scalar(0.5).tanh().add_scalar(1.0);
            b_blgn = b_blgn.clone() * to_dtype(gate_blg, b_blgn.dtype()).unsqueeze_dim(3);
        }
        self.turned(b_blgn, positions, &[Turned::BAndC, Turned::XAndB])
    }

    /// The convolved C `[b, l, g * n]`, as the scan reads it, `[b, l, g, n]`.
    pub(super) fn c_at(&self, c: Tensor<B, 3>, positions: Positions<'_, B>) -> Tensor<B, 4> {
        let c_blgn = normed(&self.c_norm, self.groups(c));
        let c_blgn = self.config.feature_map.of(c_blgn);
        self.turned(c_blgn, positions, &[Turned::BAndC])
    }

    /// `x [b, l, h, p]`, turned where the rotation is one of `by`.
    pub(super) fn turned(
        &self,
        x: Tensor<B, 4>,
        positions: Positions<'_, B>,
        by: &[Turned],
    ) -> Tensor<B, 4> {
        match &self.config.rotary {
            Some(rotary) if by.contains(&rotary.turned) => {
                let (l, device) = (x.dims()[1], x.device());
                let (theta, scaling) = (rotary.theta, rotary.scaling);
                Rotary::at(rotary.dim, theta, scaling, positions, l, &device).rotate(x)
            }
            _ => x,
        }
    }

    /// A_log with its bias, `[b, l, h]`.
    pub(super) fn a_log(&self, projected: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.a_log_bias {
            // In f32, since a slow decay is a large number of which the last digits count.
            Some(bias) => kernels::add_bias(projected, bias.val()),
            None => projected,
        }
    }

    /// Some outputs of `in_proj`, `[b, l, n]`.
    pub(super) fn projected(&self, u: Tensor<B, 3>, rows: Rows) -> Tensor<B, 3> {
        self.in_proj.forward_rows(u, rows.start, rows.n)
    }

    /// Some outputs of `in_proj` through the convolution and the activation, `[b, l, n]`.
    pub(super) fn convolved(
        &self,
        u: Tensor<B, 3>,
        rows: Rows,
        documents: &Option<DocumentStarts<B>>,
    ) -> Tensor<B, 3> {
        let taps = self.taps().narrow(0, rows.start, rows.n);
        let bias = self.conv1d.bias.as_ref();
        let bias = bias.map(|bias| bias.val().narrow(0, rows.start, rows.n));
        kernels::causal_conv_of(ConvInputs {
            x: self.projected(u, rows),
            weight: taps,
            bias,
            history: None,
            activation: self.activation(),
            documents: documents.clone(),
        })
    }

    /// The convolution's weight as `[c, w]`.
    pub(super) fn taps(&self) -> Tensor<B, 2> {
        self.conv1d
            .weight
            .val()
            .reshape([self.conv_dim(), self.config.d_conv])
    }

    /// What follows the convolution.
    pub(super) fn activation(&self) -> ConvActivation {
        match self.config.activation {
            Activation::Identity => ConvActivation::Identity,
            Activation::Silu => ConvActivation::Silu,
        }
    }

    /// `[b, l, d_inner]` to `[b, l, h, p]`.
    pub(super) fn heads(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [b, l, d_inner] = x.dims();
        let h = self.config.n_v_heads;
        x.reshape([b, l, h, d_inner / h])
    }

    /// `[b, l, g * n]` to `[b, l, g, n]`.
    pub(super) fn groups(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [b, l, _] = x.dims();
        x.reshape([b, l, self.config.n_qk_heads, self.config.d_state])
    }

    /// `[b, l, h, p]` to `[b, l, d_inner]`.
    pub(super) fn joined(&self, y_blhp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, l, _, _] = y_blhp.dims();
        y_blhp.reshape([b, l, self.d_inner])
    }

    /// The scan, skip and gate, and the scan's last state.
    pub(super) fn gated_scan(
        &self,
        scan: ScanInputs<B>,
        z: Tensor<B, 3>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let epilogue = Epilogue {
            d: Some(self.d.val()),
            z: Some(z),
            z_bias: self.z_bias.as_ref().map(Param::val),
        };
        kernels::gated_scan(scan, epilogue, self.config.chunk_size)
    }
}

/// A_log with a decay of zero where a document begins.
fn cut<B: KernelBackend>(
    a_log: Tensor<B, 3>,
    documents: &Option<DocumentStarts<B>>,
) -> Tensor<B, 3> {
    match documents {
        Some(documents) => documents.cut(a_log),
        None => a_log,
    }
}

/// `x [.., n]` through `norm`, where there is one.
fn normed<B: KernelBackend>(norm: &Option<Norm<B>>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
