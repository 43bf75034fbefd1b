//! A layer with discrete Mamba-2 and attention side by side. The attention is some of the teacher's heads
//! (Retrieval-Aware Distillation, arXiv 2602.11374), or all of them within a window of the last tokens.
//!
//! Both read the layer's normalised input.

mod config;
mod state;
mod student;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::{KernelBackend, TransferParts, Window};

pub use config::{BesideAttentionConfig, Joined};
pub use state::{BesideRows, BesideState};
pub use student::{HeadsStudent, WindowStudent};

use super::attention::Attention;
use super::discrete_mamba2::DiscreteMamba2;
use super::{
    MixerOptions, MixerRows, MixerState, StateError, StateTensors, StepOutput, TokenMixer,
};
use crate::config_error::ConfigError;
use crate::init::{Fill, Init};
use crate::layers::Linear;
use crate::precision::{to_dtype, widen};
use crate::sequences::Sequences;

/// Added to deviations, as published.
const EPSILON: f64 = 1e-5;

/// A state-space mixer, the attention beside it, and what stands between their outputs.
#[derive(Module, Debug)]
pub struct BesideAttention<B: Backend> {
    /// The state-space mixer.
    pub ssm: DiscreteMamba2<B>,
    /// The attention.
    pub attention: Option<Attention<B>>,
    /// Between attention's output and the sum, `d_model` to `d_model`.
    pub adapter: Option<Linear<B>>,
    #[module(skip)]
    config: BesideAttentionConfig,
    /// Whether the state-space mixer's output is left out of the sum behind an adapter.
    #[module(skip)]
    is_ssm_left_out: bool,
    /// See [`TokenMixer::leave_out_window`].
    #[module(skip)]
    left_out_rows: Vec<bool>,
}

impl<B: Backend> BesideAttention<B> {
    /// A mixer for a network `d_model` wide, drawn from `seed`: both parts as alone, and the adapter as PyTorch's
    /// `Linear`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &BesideAttentionConfig,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &BesideAttentionConfig, d_model: usize) -> Self {
        let ssm = DiscreteMamba2::draw(init, &config.ssm, d_model);
        let attention = config.attention.as_ref();
        let attention = attention.map(|attention| Attention::draw(init, attention, d_model));
        let fill = Fill::torch_linear(d_model);
        let adapter = (config.has_adapter())
            .then(|| Linear::new(init, [d_model, d_model], fill.clone(), Some(fill.clone())));
        Self {
            ssm,
            attention,
            adapter,
            config: config.clone(),
            is_ssm_left_out: false,
            left_out_rows: vec![],
        }
    }

    /// The options it was made with.
    pub fn config(&self) -> &BesideAttentionConfig {
        &self.config
    }

    /// Whether attention adds nothing to any row.
    fn are_all_left_out(&self) -> bool {
        !self.left_out_rows.is_empty() && self.left_out_rows.iter().all(|row| *row)
    }
}

/// The mean and the deviation (that of a sample) over the last dimension, both with that dimension 1.
fn moments<B: Backend, const D: usize>(x: Tensor<B, D>) -> (Tensor<B, D>, Tensor<B, D>) {
    let d = x.dims()[D - 1];
    let mean = x.clone().mean_dim(D - 1);
    let squares = (x - mean.clone()).powi_scalar(2).sum_dim(D - 1);
    (mean, (squares / (d as f64 - 1.0)).sqrt())
}

impl<B: KernelBackend> BesideAttention<B> {
    /// The outputs of both, `[.., d_model]`, made one; `adapt` computes the adapter.
    fn join<const D: usize>(
        &self,
        ssm: Tensor<B, D>,
        attention: Tensor<B, D>,
        adapt: impl FnOnce(&Linear<B>, Tensor<B, D>) -> Tensor<B, D>,
    ) -> Tensor<B, D> {
        let Some(adapter) = &self.adapter else {
            return ssm + attention;
        };
        let dtype = ssm.dtype();
        let attention = widen(attention);
        let (mean, deviation) = moments(attention.clone());
        let (mean_of_ssm, deviation_of_ssm) = moments(widen(ssm.clone()));
        let scale = (deviation_of_ssm + EPSILON) / (deviation + EPSILON);
        let like_ssm = (attention - mean) * scale + mean_of_ssm;
        let adapted = adapt(adapter, to_dtype(like_ssm, dtype));
        let sum = if self.is_ssm_left_out {
            adapted
        } else {
            ssm + adapted
        };
        sum * 0.5
    }

    /// `output [b, l, d_model]` of attention, zero in the rows that are left out.
    fn without_rows(&self, output: Tensor<B, 3>) -> Tensor<B, 3> {
        let rows = &self.left_out_rows;
        assert_eq!(output.dims()[0], rows.len(), "a row for each that is named");
        let kept: Vec<f32> = (rows.iter())
            .map(|is_left_out| f32::from(u8::from(!is_left_out)))
            .collect();
        let options = (&output.device(), output.dtype());
        let kept = Tensor::<B, 3>::from_data(TensorData::new(kept, [rows.len(), 1, 1]), options);
        output * kept
    }

    /// [`join`](Self::join) of what a step gives.
    fn join_step<'a>(
        &'a self,
        ssm: StepOutput<'a, B>,
        attention: Option<StepOutput<'a, B>>,
    ) -> StepOutput<'a, B> {
        let Some(attention) = attention else {
            return ssm;
        };
        if self.adapter.is_none() {
            let through = ssm.through.into_iter().chain(attention.through);
            return StepOutput {
                through: through.collect(),
                plain: None,
            };
        }
        let output = |step: StepOutput<B>| {
            let terms = step.through.into_iter();
            let terms = terms.map(|(y, linear)| linear.forward_step(y));
            terms.reduce(|sum, term| sum + term).expect("a projection")
        };
        let joined = self.join(output(ssm), output(attention), |adapter, x| {
            adapter.forward_step(x)
        });
        StepOutput {
            through: vec![],
            plain: Some(joined),
        }
    }
}

impl<B: KernelBackend> TokenMixer<B> for BesideAttention<B> {
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        let attention = self.attention.as_ref();
        MixerState::BesideAttention(BesideState {
            ssm: Box::new(self.ssm.new_state(batch, device)),
            attention: attention.map(|a| Box::new(a.new_state(batch, device))),
        })
    }

    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B> {
        let attention = self.attention.as_ref();
        MixerRows::BesideAttention(BesideRows {
            ssm: Box::new(self.ssm.new_rows(rows, device)),
            attention: attention.map(|a| Box::new(a.new_rows(rows, device))),
        })
    }

    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        let ssm = Box::new((self.ssm).state_from_tensors(position, tensors, device)?);
        let attention = match &self.attention {
            Some(attention) => {
                let state = attention.state_from_tensors(position, tensors, device)?;
                Some(Box::new(state))
            }
            None => None,
        };
        let state = BesideState { ssm, attention };
        Ok(MixerState::BesideAttention(state))
    }

    fn entries(&self) -> Vec<&Linear<B>> {
        let attention = self.attention.iter().flat_map(TokenMixer::entries);
        self.ssm.entries().into_iter().chain(attention).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        let attention = self.attention.iter_mut().flat_map(TokenMixer::linears_mut);
        let ssm = self.ssm.linears_mut().into_iter();
        ssm.chain(attention).chain(&mut self.adapter).collect()
    }

    fn fuse_projections(&mut self) {
        self.ssm.fuse_projections();
        if let Some(attention) = &mut self.attention {
            attention.fuse_projections();
        }
    }

    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3> {
        let ssm = self.ssm.forward_of(sequences.clone());
        match &self.attention {
            None => ssm,
            Some(_) if self.are_all_left_out() => ssm,
            Some(attention) if !self.left_out_rows.is_empty() => {
                ssm + self.without_rows(attention.forward_of(sequences))
            }
            Some(attention) => self.join(ssm, attention.forward_of(sequences), Linear::forward),
        }
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3> {
        match &self.attention {
            None => self.ssm.forward_onto(residual, sequences),
            Some(_) if self.are_all_left_out() => self.ssm.forward_onto(residual, sequences),
            Some(attention) if !self.left_out_rows.is_empty() => {
                let with_ssm = self.ssm.forward_onto(residual, sequences.clone());
                with_ssm + self.without_rows(attention.forward_of(sequences))
            }
            Some(attention) if self.adapter.is_none() => {
                let with_ssm = self.ssm.forward_onto(residual, sequences.clone());
                attention.forward_onto(with_ssm, sequences)
            }
            Some(_) => residual + self.forward_of(sequences),
        }
    }

    /// The state-space mixer's.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4> {
        self.ssm.mixing_matrix_of(sequences)
    }

    fn transfer_parts_of(&self, sequences: Sequences<B>) -> Option<TransferParts<B>> {
        self.ssm.transfer_parts_of(sequences)
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let state = BesideState::within(state);
        let ssm = self.ssm.prefill(u.clone(), &mut state.ssm);
        match (&self.attention, &mut state.attention) {
            (Some(attention), Some(state)) => {
                self.join(ssm, attention.prefill(u, state), Linear::forward)
            }
            _ => ssm,
        }
    }

    fn step(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        state: &mut MixerState<B>,
    ) -> StepOutput<'_, B> {
        let state = BesideState::within(state);
        let of_attention = projected.split_off(self.ssm.entries().len());
        let ssm = self.ssm.step(projected, &mut state.ssm);
        let attention = match (&self.attention, &mut state.attention) {
            (Some(attention), Some(state)) => Some(attention.step(of_attention, state)),
            _ => None,
        };
        self.join_step(ssm, attention)
    }

    fn step_rows(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> StepOutput<'_, B> {
        let rows = BesideRows::within(rows);
        let of_attention = projected.split_off(self.ssm.entries().len());
        let ssm = self.ssm.step_rows(projected, &mut rows.ssm, occupied);
        let attention = match (&self.attention, &mut rows.attention) {
            (Some(attention), Some(rows)) => {
                Some(attention.step_rows(of_attention, rows, occupied))
            }
            _ => None,
        };
        self.join_step(ssm, attention)
    }

    fn steps_alike(&self, state: &MixerState<B>) -> usize {
        let MixerState::BesideAttention(state) = state else {
            return 0;
        };
        let ssm = self.ssm.steps_alike(&state.ssm);
        match (&self.attention, &state.attention) {
            (Some(attention), Some(state)) => ssm.min(attention.steps_alike(state)),
            _ => ssm,
        }
    }

    fn mamba(&self) -> Option<&DiscreteMamba2<B>> {
        Some(&self.ssm)
    }

    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2<B>> {
        Some(&mut self.ssm)
    }

    fn softmax(&self) -> Option<&Attention<B>> {
        self.attention.as_ref()
    }

    fn narrow_attention(&mut self, window: Window) -> bool {
        let Some(attention) = &mut self.attention else {
            return false;
        };
        attention.narrow_attention(window);
        self.config.attention = Some(attention.config().clone());
        true
    }

    /// The state-space mixer is alone then, as in a layer that keeps no head.
    fn silence_attention(&mut self) -> bool {
        if self.is_ssm_left_out {
            self.ssm.silence_ssm();
        }
        self.config.attention = None;
        self.attention.take().is_some()
    }

    /// With an adapter, the attention's output is scaled to the mean and the deviation of the state-space mixer's
    /// output; this stays so.
    fn silence_ssm(&mut self) -> bool {
        if self.attention.is_some() && self.adapter.is_some() {
            self.is_ssm_left_out = true;
        } else {
            self.ssm.silence_ssm();
        }
        true
    }

    fn reset_state_every(&mut self, tokens: usize) -> bool {
        self.ssm.reset_state_every(tokens)
    }

    fn leave_out_window(&mut self, rows: &[bool]) -> bool {
        let attention = self.config.attention.as_ref();
        let has_window = attention.is_some_and(|attention| attention.window.is_some());
        if !has_window || !self.is_sum() {
            return false;
        }
        self.left_out_rows = if rows.contains(&true) {
            rows.to_vec()
        } else {
            vec![]
        };
        true
    }

    fn is_sum(&self) -> bool {
        self.adapter.is_none()
    }

    /// All heads, or those that are named. The bias of the output is the state-space mixer's, if that has one: both
    /// outputs are added.
    fn take_over(&mut self, theirs: &Attention<B>) {
        let (Some(own), heads) = (&mut self.attention, &self.config.heads) else {
            return;
        };
        if heads.is_empty() {
            own.copy_from(theirs);
        } else {
            own.copy_heads(theirs, heads);
        }
        if let (Some(bias), Some(_)) = (&mut own.dense.bias, &self.ssm.out_proj.bias) {
            *bias = Param::initialized(bias.id, bias.val().zeros_like());
        }
    }

    fn added_context(&self, u: Tensor<B, 3>, heads: usize) -> Option<Tensor<B, 4>> {
        let attention = self.attention.as_ref()?;
        if !self.is_sum() {
            return None;
        }
        let kept = attention.context(u);
        let [_, _, n, _] = kept.dims();
        if self.config.heads.is_empty() {
            return (n == heads).then_some(kept);
        }
        let nothing = kept.clone().narrow(2, 0, 1).zeros_like();
        let of = |head| {
            let at = self.config.heads.iter().position(|kept| *kept == head);
            at.map_or(nothing.clone(), |at| kept.clone().narrow(2, at, 1))
        };
        Some(Tensor::cat((0..heads).map(of).collect(), 2))
    }

    fn added_output(&self, u: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let attention = self.attention.as_ref()?;
        (self.is_sum()).then(|| attention.forward(u))
    }
}
