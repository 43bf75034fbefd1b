//! Decoding of a sequence in pieces: several tokens by the scan, single tokens by the recurrence.

use std::mem;

use burn::module::Param;
use burn::tensor::Tensor;
use kernels::{HeadNorm, KernelBackend, ScanInputs, StepParameters, StepState, Turn};

use super::{DiscreteMamba2, Mamba2Rows, Mamba2State, Parts, Rows, Turned};
use crate::layers::Norm;
use crate::mixers::rotary::{Positions, Rotary};
use crate::mixers::{MixerState, StateRows};
use crate::precision::to_dtype;

impl<B: KernelBackend> DiscreteMamba2<B> {
    /// The angles that turn the state from the position of a token to the position `tokens` later.
    fn turn(&self, tokens: usize, device: &B::Device) -> Option<Turn<B>> {
        let rotary = self.config.rotary.as_ref()?;
        (rotary.turned == Turned::BAndC).then(|| {
            let (theta, scaling) = (rotary.theta, rotary.scaling);
            let Rotary { cos, sin, .. } = Rotary::back(rotary.dim, theta, scaling, tokens, device);
            Turn { cos, sin }
        })
    }

    /// Whether a token's computation depends on how many were read before it.
    pub(super) fn counts_positions(&self) -> bool {
        let rotary = self.config.rotary.as_ref();
        rotary.is_some_and(|rotary| rotary.turned == Turned::XAndB)
    }

    /// Whether even a single token must use the scan, because the op of the recurrence does not support the mixer's
    /// options.
    pub(super) fn needs_scan(&self) -> bool {
        self.counts_positions() || !self.config.feature_map.is_identity() || self.config.b_gate
    }

    /// The norms of B and of C, for a step.
    fn bc_norms(&self) -> Option<[HeadNorm<B>; 2]> {
        let of = |norm: &Norm<B>| HeadNorm {
            gamma: norm.weight.val(),
            epsilon: norm.epsilon,
        };
        Some([of(self.b_norm.as_ref()?), of(self.c_norm.as_ref()?)])
    }

    /// What stands between the two projections: `projected [b, l, d_in_proj]`, the tokens after those that `state`
    /// holds, to `[b, l, d_inner]`. In pieces that end where the state is reset.
    pub(super) fn read(&self, projected: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Tensor<B, 3> {
        let Some(every) = self.reset_every else {
            return self.read_piece(projected, state);
        };
        let l = projected.dims()[1];
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < l {
            self.reset(state);
            let n = (l - done).min(every - state.position % every);
            pieces.push(self.read_piece(projected.clone().narrow(1, done, n), state));
            done += n;
        }
        Tensor::cat(pieces, 1)
    }

    fn read_piece(&self, projected: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Tensor<B, 3> {
        let [b, l, rows] = projected.dims();
        if l > 1 || self.needs_scan() {
            return self.scan(projected, state);
        }
        let gated = self.recur(projected.reshape([b, rows]), state);
        gated.reshape([b, 1, self.d_inner])
    }

    /// Resets `state` to zero if a reset is due before the next token. The window of the convolution is not reset.
    fn reset(&self, state: &mut Mamba2State<B>) {
        let is_due = |every| state.position.is_multiple_of(every);
        if self.reset_every.is_some_and(is_due) {
            state.ssm = state.ssm.zeros_like();
        }
    }

    /// What stands between the two projections, by the scan: `projected [b, l, d_in_proj]`, the tokens after those
    /// that `state` holds, to `[b, l, d_inner]`.
    pub(super) fn scan(&self, projected: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Tensor<B, 3> {
        let (l, device) = (projected.dims()[1], projected.device());
        let parts = self.advance_conv(projected, state);
        let positions = Positions::From(if self.counts_positions() {
            state.position
        } else {
            // Only distances matter. The state is stored relative to its latest token, which counts as position 0, so
            // the next token is at 1.
            1
        });
        let scan = ScanInputs {
            x: self.x_at(parts.x, positions),
            a_log: self.a_log(parts.a_log),
            b: self.b_at(parts.b, parts.b_gate, positions),
            c: self.c_at(parts.c, positions),
            initial_state: Some(state.ssm.clone()),
        };
        let (gated_blhp, ssm) = self.gated_scan(scan, parts.z);
        state.ssm = match self.turn(l, &device) {
            Some(turn) => turn.apply(ssm),
            None => ssm,
        };
        state.position += l;
        self.joined(gated_blhp)
    }

    /// What stands between the two projections for one token, `projected [b, d_in_proj]` to `[b, d_inner]`.
    pub(super) fn advance(
        &self,
        projected: Tensor<B, 2>,
        state: &mut Mamba2State<B>,
    ) -> Tensor<B, 2> {
        self.reset(state);
        // The recurrence turns B and C alone, and neither maps nor gates them.
        if !self.needs_scan() {
            return self.recur(projected, state);
        }
        let [b, rows] = projected.dims();
        // A step's vectors are in f32 whatever the dtype of the parameters.
        let (own, dtype) = (self.d.val().dtype(), projected.dtype());
        let gated = self.scan(to_dtype(projected, own).reshape([b, 1, rows]), state);
        to_dtype(gated.reshape([b, self.d_inner]), dtype)
    }

    /// [`TokenMixer::step_rows`] where each row's position matters.
    pub(super) fn advance_each(
        &self,
        projected: Tensor<B, 2>,
        rows: &mut Mamba2Rows<B>,
        occupied: &[bool],
    ) -> Tensor<B, 2> {
        let gated = occupied.iter().enumerate().map(|(row, occupied)| {
            let token = projected.clone().narrow(0, row, 1);
            if !occupied {
                return token.narrow(1, 0, self.d_inner).zeros_like();
            }
            let mut state = rows.row(row);
            let gated = self.advance(token, &mut state);
            rows.put(row, MixerState::DiscreteMamba2(state));
            gated
        });
        Tensor::cat(gated.collect(), 0)
    }

    /// What stands between the two projections, by the recurrence: `projected [b, d_in_proj]`, one token after
    /// those that `state` holds, to `[b, d_inner]`.
    pub(super) fn recur(
        &self,
        projected: Tensor<B, 2>,
        state: &mut Mamba2State<B>,
    ) -> Tensor<B, 2> {
        let d = self.d.val();
        let h = self.config.n_v_heads;
        // Moved out of the state, so that a backend may write where they are.
        let conv = mem::replace(&mut state.conv, d.clone().reshape([1, 1, h]));
        let ssm = mem::replace(&mut state.ssm, d.clone().reshape([1, 1, 1, h]));
        let parameters = StepParameters {
            taps: self.conv1d.weight.val(),
            bias: self.conv1d.bias.as_ref().map(Param::val),
            activation: self.activation(),
            d,
            z_bias: self.z_bias.as_ref().map(Param::val),
            a_log_bias: self.a_log_bias.as_ref().map(Param::val),
            bc_norms: self.bc_norms(),
            turn: self.turn(1, &projected.device()),
        };
        let before = StepState { conv, ssm };
        let (gated, after) = kernels::recurrent_step(projected, parameters, before);
        (state.conv, state.ssm) = (after.conv, after.ssm);
        state.position += 1;
        gated
    }

    /// Moves the convolution's window over `projected [b, l, d_in_proj]`. Nothing here is differentiated, so
    /// the one wide projection is sliced.
    fn advance_conv(&self, projected: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Parts<B> {
        let (l, w, c) = (projected.dims()[1], self.config.d_conv, self.conv_dim());
        let part = |x: &Tensor<B, 3>, rows: Rows| x.clone().narrow(2, rows.start, rows.n);
        let xbc_blc = projected.clone().narrow(2, 0, c);
        let window_bwc = to_dtype(state.conv.clone().swap_dims(1, 2), xbc_blc.dtype());
        let history = (w > 1).then(|| window_bwc.clone().narrow(1, 1, w - 1));
        let latest = if l >= w {
            xbc_blc.clone().narrow(1, l - w, w)
        } else {
            Tensor::cat(vec![window_bwc.narrow(1, l, w - l), xbc_blc.clone()], 1)
        };
        state.conv = latest.swap_dims(1, 2);
        let bias = self.conv1d.bias.as_ref().map(Param::val);
        let convolved =
            kernels::causal_conv(xbc_blc, self.taps(), bias, history, self.activation());
        Parts {
            x: part(&convolved, self.x_rows()),
            b: part(&convolved, self.b_rows()),
            c: part(&convolved, self.c_rows()),
            z: part(&projected, self.z_rows()),
            a_log: part(&projected, self.a_log_rows()),
            b_gate: self.b_gate_rows().map(|rows| part(&projected, rows)),
        }
    }
}
