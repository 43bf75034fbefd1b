//! The discrete Mamba-2 mixer (arXiv 2408.10189, section 4 and appendix).
//!
//! It is Mamba-2 without the parts that attention does not have: it has no step size, no normalisation before the
//! output projection and no activation after the convolution; each head has its own B and C; and the decay is a
//! projection of the input. `in_proj` computes `[x | B | C | z | A_log]`; x, B and C pass through a short causal
//! convolution; the scan mixes x over time; `D` adds x to the output (the skip); and `silu(z + z_bias)` gates the
//! output. Options that the paper's mixer lacks: rotary positions, RMS norms and a feature map of B and C, gates of B
//! (further rows of `in_proj`), and a bias of A_log.
//!
//! B corresponds to attention's keys, C to its queries and x to its values: the mixer is `y = T x` for the
//! lower-triangular [`mixing_matrix`](TokenMixer::mixing_matrix) `T`, which MOHAWK's first stage turns towards the
//! teacher's attention matrix.

mod config;
mod decoding;
mod feature_map;
mod fitting;
mod forward;
mod rotary;
mod state;
mod student;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{KernelBackend, TransferParts};

pub use config::{Activation, DiscreteMamba2Config};
pub use feature_map::FeatureMap;
pub use rotary::{MixerRotary, Turned};
pub use state::{Mamba2Rows, Mamba2State};
pub use student::Mamba2Student;

use super::{
    MixerOptions, MixerRows, MixerState, StateError, StateTensors, StepOutput, TokenMixer,
};
use crate::config_error::ConfigError;
use crate::init::{Fill, Init};
use crate::layers::{Linear, Norm, NormConfig, NormKind};
use crate::precision::{wide, widen};
use crate::sequences::Sequences;

/// The gate's initial bias: `silu` of it is 1.
pub(crate) const OPEN_GATE: f64 = 1.278464542761;
/// The depth by whose square root the published code divides the output projection.
const PUBLISHED_DEPTH: f64 = 24.0;

/// How the published code fills the output projection.
pub(crate) fn published_out_proj(d_inner: usize) -> Fill {
    Fill::Uniform(1.0 / (d_inner as f64 * PUBLISHED_DEPTH).sqrt())
}

/// The depthwise convolution's parameters, shaped as PyTorch's `Conv1d`.
#[derive(Module, Debug)]
pub struct DepthwiseConv<B: Backend> {
    /// `[c, 1, w]`, the last tap on the present.
    pub weight: Param<Tensor<B, 3>>,
    /// `[c]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

/// The mixer. Letters in names: b batch, l length, h heads, p head dimension, g groups, n state.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flex::Flex;
/// use model::{DiscreteMamba2, DiscreteMamba2Config, TokenMixer};
///
/// let device = Default::default();
/// let options = DiscreteMamba2Config::with_heads(4); // heads of 16 in a width of 64
/// let mixer = DiscreteMamba2::<Flex>::new(&options, 64, 1, &device)?;
/// let u = Tensor::random([2, 10, 64], Distribution::Default, &device);
/// assert_eq!(mixer.forward(u.clone()).dims(), [2, 10, 64]);
/// assert_eq!(mixer.mixing_matrix(u).dims(), [2, 4, 10, 10]);
/// # Ok::<(), model::ConfigError>(())
/// ```
#[derive(Module, Debug)]
pub struct DiscreteMamba2<B: Backend> {
    /// `d_model` to `[x | B | C | z | A_log | gates of B]`.
    pub in_proj: Linear<B>,
    /// Added to z, `[d_inner]`.
    pub z_bias: Option<Param<Tensor<B, 1>>>,
    /// Over the channels of x, B and C.
    pub conv1d: DepthwiseConv<B>,
    /// The skip from x to the output, `[h]`; `D` in files.
    pub d: Param<Tensor<B, 1>>,
    /// `d_inner` to `d_model`.
    pub out_proj: Linear<B>,
    /// Added to A_log, `[h]`.
    pub a_log_bias: Option<Param<Tensor<B, 1>>>,
    /// Of the `n` numbers of each head of B.
    pub b_norm: Option<Norm<B>>,
    /// Of each head of C.
    pub c_norm: Option<Norm<B>>,
    #[module(skip)]
    config: DiscreteMamba2Config,
    d_inner: usize,
    /// See [`TokenMixer::reset_state_every`].
    #[module(skip)]
    reset_every: Option<usize>,
}

/// A range of the rows of `in_proj`, and of the convolution's channels where it has any.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: usize,
    pub n: usize,
}

/// What the scan and the gate read, each `[b, l, ..]`.
struct Parts<B: Backend> {
    x: Tensor<B, 3>,
    b: Tensor<B, 3>,
    c: Tensor<B, 3>,
    z: Tensor<B, 3>,
    a_log: Tensor<B, 3>,
    /// What the gates of B are made of, `[b, l, g]`; `None` without.
    b_gate: Option<Tensor<B, 3>>,
}

impl<B: Backend> DiscreteMamba2<B> {
    /// A mixer for a network `d_model` wide, drawn from `seed` as published (arXiv 2408.10189, the authors'
    /// training code): the convolution passes its input through (last tap 1, the others and the bias 0); the
    /// gate is open (its rows of the input projection 0, and its bias such that `silu` is 1); `D` is 1; the
    /// output projection is drawn as PyTorch's `Linear` and divided by `sqrt(24)`, whatever the number of
    /// layers; everything else as PyTorch's `Linear`. With `D` at 1, the mixing matrix starts near the identity.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &DiscreteMamba2Config,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &DiscreteMamba2Config, d_model: usize) -> Self {
        let d_inner = config.d_inner(d_model);
        let conv_dim = config.conv_dim(d_model);
        let rows = config.d_in_proj(d_model);
        let default = Fill::torch_linear(d_model);
        // The gate's rows are in the middle: zeros, and with biases its own bias among them.
        let around_gate = |width: usize, gate: Fill| {
            Fill::Parts(vec![
                (conv_dim * width, default.clone()),
                (d_inner * width, gate),
                (config.n_v_heads * width, default.clone()),
                (config.n_b_gates() * width, Fill::constant(0.0)),
            ])
        };
        let in_bias = config
            .bias
            .then(|| around_gate(1, Fill::constant(OPEN_GATE)));
        // Without any bias a gate of zeros would be closed.
        let has_open_gate = config.bias || config.z_bias;
        let gate = if has_open_gate {
            Fill::constant(0.0)
        } else {
            default.clone()
        };
        let in_weight = around_gate(d_model, gate);
        let out_bias = config.bias.then(|| Fill::torch_linear(d_inner));
        let out_proj = published_out_proj(d_inner);
        // A gate without a bias of its own has that of the projection, or none.
        let own_gate = |init: &mut Init<B>| {
            let open = if config.bias { 0.0 } else { OPEN_GATE };
            init.parameter([d_inner], Fill::constant(open))
        };
        let norm = |init: &mut Init<B>| {
            let norm = |epsilon| NormConfig {
                kind: NormKind::RmsNorm,
                epsilon,
            };
            Some(Norm::new(init, config.d_state, norm(config.bc_norm?)))
        };
        let mut taps = vec![0.0; config.d_conv];
        taps[config.d_conv - 1] = 1.0;
        Self {
            in_proj: Linear::new(init, [rows, d_model], in_weight, in_bias),
            z_bias: config.z_bias.then(|| own_gate(init)),
            conv1d: DepthwiseConv {
                weight: init.parameter([conv_dim, 1, config.d_conv], Fill::Repeat(taps)),
                bias: config
                    .conv_bias
                    .then(|| init.parameter([conv_dim], Fill::constant(0.0))),
            },
            d: init.parameter([config.n_v_heads], Fill::constant(1.0)),
            out_proj: Linear::new(init, [d_model, d_inner], out_proj, out_bias),
            // Last, so that what is drawn above does not depend on them.
            a_log_bias: (config.a_log_bias)
                .then(|| init.parameter([config.n_v_heads], Fill::constant(0.0))),
            b_norm: norm(init),
            c_norm: norm(init),
            config: config.clone(),
            d_inner,
            reset_every: None,
        }
    }

    fn x_rows(&self) -> Rows {
        let (start, n) = (0, self.d_inner);
        Rows { start, n }
    }

    fn b_rows(&self) -> Rows {
        let (start, n) = (self.d_inner, self.config.d_bc());
        Rows { start, n }
    }

    fn c_rows(&self) -> Rows {
        let start = self.d_inner + self.config.d_bc();
        let n = self.config.d_bc();
        Rows { start, n }
    }

    pub(crate) fn conv_dim(&self) -> usize {
        self.d_inner + 2 * self.config.d_bc()
    }

    fn z_rows(&self) -> Rows {
        let (start, n) = (self.conv_dim(), self.d_inner);
        Rows { start, n }
    }

    pub(crate) fn a_log_rows(&self) -> Rows {
        let start = self.conv_dim() + self.d_inner;
        let n = self.config.n_v_heads;
        Rows { start, n }
    }

    /// `None` without gates of B.
    fn b_gate_rows(&self) -> Option<Rows> {
        let (start, n) = (
            self.a_log_rows().start + self.config.n_v_heads,
            self.config.n_b_gates(),
        );
        (n > 0).then_some(Rows { start, n })
    }

    /// Width of x.
    pub(crate) fn d_inner(&self) -> usize {
        self.d_inner
    }

    /// The options it was made with.
    pub fn config(&self) -> &DiscreteMamba2Config {
        &self.config
    }

    /// Zeros: the convolution's window in the dtype of the parameters, the SSM state never half.
    fn empty_state(&self, batch: usize, device: &B::Device) -> Mamba2State<B> {
        let config = &self.config;
        let p = self.d_inner / config.n_v_heads;
        let dtype = self.d.val().dtype();
        let conv = [batch, self.conv_dim(), config.d_conv];
        let ssm = [batch, config.n_v_heads, p, config.d_state];
        Mamba2State {
            conv: Tensor::zeros(conv, (device, dtype)),
            ssm: Tensor::zeros(ssm, (device, wide(dtype))),
            position: 0,
        }
    }
}

impl<B: KernelBackend> TokenMixer<B> for DiscreteMamba2<B> {
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        MixerState::DiscreteMamba2(self.empty_state(batch, device))
    }

    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B> {
        let mut state = self.empty_state(rows, device);
        // As steps leave it: in f32 whatever the dtype of the parameters.
        state.conv = widen(state.conv);
        let positions = vec![0; rows];
        MixerRows::DiscreteMamba2(Mamba2Rows { state, positions })
    }

    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        let Mamba2State { conv, ssm, .. } = self.empty_state(1, device);
        Ok(MixerState::DiscreteMamba2(Mamba2State {
            conv: tensors.take("conv", conv.dims(), conv.dtype(), device)?,
            ssm: tensors.take("ssm", ssm.dims(), ssm.dtype(), device)?,
            position,
        }))
    }

    fn entries(&self) -> Vec<&Linear<B>> {
        vec![&self.in_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        vec![&mut self.in_proj, &mut self.out_proj]
    }

    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.out_proj.forward(self.gated(sequences))
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.out_proj.forward_onto(residual, self.gated(sequences))
    }

    /// `T` with `y = T x` before the gate: at `(l, s)` the product of `C_l . B_s` and the decays in
    /// `(s, l]`, plus `D` on the diagonal. With rotary positions of x it acts on the x that is turned.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4> {
        kernels::transfer_matrix(self.matrix_parts(sequences))
    }

    fn transfer_parts_of(&self, sequences: Sequences<B>) -> Option<TransferParts<B>> {
        Some(self.matrix_parts(sequences))
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let state = Mamba2State::within(state);
        let gated = self.read(self.in_proj.forward(u), state);
        self.out_proj.forward(gated)
    }

    fn step(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        state: &mut MixerState<B>,
    ) -> StepOutput<'_, B> {
        let gated = self.advance(projected.swap_remove(0), Mamba2State::within(state));
        StepOutput::through(gated, &self.out_proj)
    }

    fn step_rows(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> StepOutput<'_, B> {
        let (projected, rows) = (projected.swap_remove(0), Mamba2Rows::within(rows));
        let gated = if self.counts_positions() || self.reset_every.is_some() {
            self.advance_each(projected, rows, occupied)
        } else {
            for position in &mut rows.positions {
                *position += 1;
            }
            self.advance(projected, &mut rows.state)
        };
        StepOutput::through(gated, &self.out_proj)
    }

    fn repeats_its_steps(&self) -> bool {
        !self.needs_scan() && self.reset_every.is_none()
    }

    /// The output projection becomes zeros without a bias.
    fn silence_ssm(&mut self) -> bool {
        let stored = self.out_proj.weight.val();
        let shape = [self.out_proj.d_out(), self.d_inner];
        let zeros = Tensor::zeros(shape, (&stored.device(), stored.dtype()));
        self.out_proj = Linear::of(Param::initialized(self.out_proj.weight.id, zeros));
        true
    }

    fn reset_state_every(&mut self, tokens: usize) -> bool {
        self.reset_every = Some(tokens);
        true
    }

    fn mamba(&self) -> Option<&DiscreteMamba2<B>> {
        Some(self)
    }

    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2<B>> {
        Some(self)
    }
}
