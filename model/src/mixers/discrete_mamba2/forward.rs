//! From the layer's input to what the scan reads, and the scan over whole sequences.

use burn::module::Param;
use burn::tensor::Tensor;
use kernels::{Epilogue, KernelBackend, ScanInputs, TransferParts};

use super::{Activation, DiscreteMamba2, Parts, Rows, Turned};
use crate::layers::Norm;
use crate::mixers::rotary::Rotary;

impl<B: KernelBackend> DiscreteMamba2<B> {
    /// What the output projection reads, `[b, l, d_inner]`.
    pub(crate) fn gated(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        if self.reset_every.is_some() {
            let mut state = self.empty_state(u.dims()[0], &u.device());
            return self.read(self.in_proj.forward(u), &mut state);
        }
        let Parts { x, b, c, z, a_log } = if B::queues() {
            self.parts_by_columns(u)
        } else {
            self.parts_by_rows(u)
        };
        let scan = ScanInputs {
            x: self.x_at(x, 0),
            a_log: self.a_log(a_log),
            b: self.b_at(b, 0),
            c: self.c_at(c, 0),
            initial_state: None,
        };
        let (gated_blhp, _) = self.gated_scan(scan, z);
        self.joined(gated_blhp)
    }

    /// What the scan and the gate read of `u [b, l, d_model]`, by a product and a convolution for each: on a CPU,
    /// where the gradients of the weight's slices cost less than copies of activations.
    fn parts_by_rows(&self, u: Tensor<B, 3>) -> Parts<B> {
        Parts {
            x: self.convolved(u.clone(), self.x_rows()),
            b: self.convolved(u.clone(), self.b_rows()),
            c: self.convolved(u.clone(), self.c_rows()),
            z: self.projected(u.clone(), self.z_rows()),
            a_log: self.projected(u, self.a_log_rows()),
        }
    }

    /// The same by one product and one convolution: on a GPU, where each launch costs and wide products are the
    /// faster ones, forward and backward.
    fn parts_by_columns(&self, u: Tensor<B, 3>) -> Parts<B> {
        let (d_inner, d_bc, h) = (self.d_inner, self.config.d_bc(), self.config.n_v_heads);
        let widths = [self.conv_dim(), d_inner, h];
        let [xbc, z, a_log] = kernels::split_columns(self.in_proj.forward_aligned(u), widths);
        let bias = self.conv1d.bias.as_ref().map(Param::val);
        let convolved = kernels::causal_conv(xbc, self.taps(), bias, None, self.activation());
        let [x, b, c] = kernels::split_columns(convolved, [d_inner, d_bc, d_bc]);
        Parts { x, b, c, z, a_log }
    }

    /// The factors of the mixing matrix: B, C, A_log and D alone are computed of `u [b, l, d_model]`.
    pub(super) fn matrix_parts(&self, u: Tensor<B, 3>) -> TransferParts<B> {
        TransferParts {
            b: self.b_at(self.convolved(u.clone(), self.b_rows()), 0),
            c: self.c_at(self.convolved(u.clone(), self.c_rows()), 0),
            a_log: self.a_log(self.projected(u, self.a_log_rows())),
            d: self.d.val(),
        }
    }

    /// The convolved x `[b, l, d_inner]` of tokens from `position` on, as the scan reads it, `[b, l, h, p]`.
    pub(super) fn x_at(&self, x: Tensor<B, 3>, position: usize) -> Tensor<B, 4> {
        self.turned(self.heads(x), position, &[Turned::XAndB])
    }

    /// The convolved B `[b, l, g * n]` of tokens from `position` on, `[b, l, g, n]`.
    pub(super) fn b_at(&self, b: Tensor<B, 3>, position: usize) -> Tensor<B, 4> {
        let b_blgn = normed(&self.b_norm, self.groups(b));
        let b_blgn = self.config.feature_map.of(b_blgn);
        self.turned(b_blgn, position, &[Turned::BAndC, Turned::XAndB])
    }

    /// The convolved C `[b, l, g * n]` of tokens from `position` on, `[b, l, g, n]`.
    pub(super) fn c_at(&self, c: Tensor<B, 3>, position: usize) -> Tensor<B, 4> {
        let c_blgn = normed(&self.c_norm, self.groups(c));
        let c_blgn = self.config.feature_map.of(c_blgn);
        self.turned(c_blgn, position, &[Turned::BAndC])
    }

    /// `x [b, l, h, p]` of tokens from `position` on, turned where the rotation is one of `by`.
    pub(super) fn turned(&self, x: Tensor<B, 4>, position: usize, by: &[Turned]) -> Tensor<B, 4> {
        match &self.config.rotary {
            Some(rotary) if by.contains(&rotary.turned) => {
                let (l, device) = (x.dims()[1], x.device());
                let (theta, scaling) = (rotary.theta, rotary.scaling);
                Rotary::new(rotary.dim, theta, scaling, position, l, &device).rotate(x)
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
    pub(super) fn convolved(&self, u: Tensor<B, 3>, rows: Rows) -> Tensor<B, 3> {
        let taps = self.taps().narrow(0, rows.start, rows.n);
        let bias = self.conv1d.bias.as_ref();
        let bias = bias.map(|bias| bias.val().narrow(0, rows.start, rows.n));
        let projected = self.projected(u, rows);
        kernels::causal_conv(projected, taps, bias, None, self.activation())
    }

    /// The convolution's weight as `[c, w]`.
    pub(super) fn taps(&self) -> Tensor<B, 2> {
        self.conv1d
            .weight
            .val()
            .reshape([self.conv_dim(), self.config.d_conv])
    }

    /// What follows the convolution.
    pub(super) fn activation(&self) -> kernels::scan::causal_conv::Activation {
        match self.config.activation {
            Activation::Identity => kernels::scan::causal_conv::Activation::Identity,
            Activation::Silu => kernels::scan::causal_conv::Activation::Silu,
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

/// `x [.., n]` through `norm`, where there is one.
fn normed<B: KernelBackend>(norm: &Option<Norm<B>>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
