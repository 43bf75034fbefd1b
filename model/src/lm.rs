//! The language model: embedding, blocks, final normalisation, head.

use std::borrow::Cow;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use kernels::decode::projections::Form;
use kernels::{KernelBackend, Window};

use crate::arch::{HeadConfig, NetworkConfig};
use crate::block::Block;
use crate::init::{Fill, Init};
use crate::layers::{Linear, Norm};
use crate::mixers::Mixer;
use crate::sequences::TokenRows;
use crate::steps::Identity;

/// A table with one row a token.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab_size, d_model]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: KernelBackend> Embedding<B> {
    /// `ids [b, l]` to `[b, l, d_model]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        kernels::embedding(self.weight.val(), ids)
    }
}

/// Everything below the head.
#[derive(Module, Debug)]
pub struct Backbone<B: Backend> {
    /// The tokens' vectors.
    pub embedding: Embedding<B>,
    /// First to last.
    pub layers: Vec<Block<B>>,
    /// After the last layer.
    pub final_layernorm: Norm<B>,
}

/// A causal language model: teacher, student or hybrid, by its layers' mixers.
///
/// Every method that takes ids needs ids below [`vocab_size`](Self::vocab_size). For other ids, some backends panic,
/// and others compute meaningless numbers.
#[derive(Module, Debug)]
pub struct CausalLm<B: Backend> {
    /// Everything below the head.
    pub backbone: Backbone<B>,
    /// `d_model` to `vocab_size`; `None` where the head's weight is the embedding's. [`head`](Self::head) is
    /// either.
    pub lm_head: Option<Linear<B>>,
    /// Gets a new value after each change of the network's computation.
    #[module(skip)]
    pub(crate) identity: Identity,
}

/// The teacher: attention in every layer.
pub type Phi<B> = CausalLm<B>;
/// The student: discrete Mamba-2, but for layers that keep the teacher's attention.
pub type PhiMamba<B> = CausalLm<B>;

/// The outputs that [`CausalLm::forward`], the plain form for tests and tools, should return. The others are not
/// computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taps {
    /// The head's output.
    pub logits: bool,
    /// The residual stream before the first layer and after each.
    pub hidden_states: bool,
    /// Each mixer's output, before it joins the residual stream.
    pub mixer_outputs: bool,
    /// Each mixer's transfer or attention matrix.
    pub mixing_matrices: bool,
}

impl Taps {
    /// Everything.
    pub fn all() -> Self {
        Self {
            logits: true,
            hidden_states: true,
            mixer_outputs: true,
            mixing_matrices: true,
        }
    }
}

/// The result of [`CausalLm::forward`], the plain form for tests and tools. Outputs that were not asked for are `None`
/// or empty.
#[derive(Debug, Clone)]
pub struct Outputs<B: Backend> {
    /// `[b, l, vocab_size]`.
    pub logits: Option<Tensor<B, 3>>,
    /// `[b, l, d_model]` each: the embedding, then the output of each block, all of them before the
    /// final normalisation (Hugging Face's last one is after it).
    pub hidden_states: Vec<Tensor<B, 3>>,
    /// `[b, l, d_model]` each.
    pub mixer_outputs: Vec<Tensor<B, 3>>,
    /// `[b, h, l, l]` each.
    pub mixing_matrices: Vec<Tensor<B, 4>>,
}

impl<B: Backend> CausalLm<B> {
    /// A network with fresh parameters, the same for the same `seed` on every backend. They are
    /// drawn when first read, so that loading or copying over them costs nothing.
    ///
    /// `config` is a [`NetworkConfig`], or the configuration of a [family](crate::arch::Family) by reference, and
    /// must be valid, as those that were read from a file are.
    pub fn init(config: impl Into<NetworkConfig>, seed: u64, device: &B::Device) -> Self {
        let network = config.into();
        let root = Init::new(seed, device);
        let layer = |(i, mixer)| Block::new(&mut root.part(i), &network, mixer);
        let layers = network.mixers.iter().enumerate().map(layer).collect();
        let mut rest = root.part(network.mixers.len());
        let (v, d) = (network.vocab_size, network.d_model);
        Self {
            backbone: Backbone {
                embedding: Embedding {
                    weight: rest.parameter([v, d], Fill::small_normal()),
                },
                layers,
                final_layernorm: Norm::new(&mut rest, d, network.norm),
            },
            lm_head: match network.head {
                HeadConfig::Own { bias } => Some(Linear::normal(&mut rest, [v, d], bias)),
                HeadConfig::Tied => None,
            },
            identity: Identity::default(),
        }
    }

    /// The same network with a new identity, so that recorded steps are not repeated for it.
    fn changed(self) -> Self {
        Self {
            identity: Identity::default(),
            ..self
        }
    }

    /// Gives the network a separate head, so that the head can be packed while the embedding is not.
    pub(crate) fn own_head(&mut self) {
        self.lm_head = Some(self.head().into_owned());
    }

    /// Ids that the embedding and the head know, padding included.
    pub fn vocab_size(&self) -> usize {
        self.backbone.embedding.weight.lazy_shape()[0]
    }

    /// The head. Where [`lm_head`](Self::lm_head) is `None`, its weight is the embedding's: then both
    /// have one id, under which gradients of both uses add up.
    pub fn head(&self) -> Cow<'_, Linear<B>> {
        match &self.lm_head {
            Some(head) => Cow::Borrowed(head),
            None => {
                let weight = &self.backbone.embedding.weight;
                // Drawn before it is copied, so that both are one tensor.
                let _ = weight.val();
                Cow::Owned(Linear::of(weight.clone()))
            }
        }
    }

    /// The same network with every parameter in `dtype`.
    pub fn cast(self, dtype: DType) -> Self {
        struct Cast(DType);
        impl<B: Backend> ModuleMapper<B> for Cast {
            fn map_float<const D: usize>(
                &mut self,
                parameter: Param<Tensor<B, D>>,
            ) -> Param<Tensor<B, D>> {
                // Detached, so that the cast parameter is a leaf.
                parameter.map(|x| {
                    let require_grad = x.is_require_grad();
                    if x.dtype() == self.0 {
                        return x;
                    }
                    x.detach()
                        .cast(self.0)
                        .detach()
                        .set_require_grad(require_grad)
                })
            }
        }
        self.map(&mut Cast(dtype)).changed()
    }

    /// The same network with every parameter in rows without padding, for inference.
    ///
    /// CubeCL pads a row if its size in bytes is not a multiple of the device's preferred alignment, and each decoding
    /// step copies such a parameter before it reads it.
    pub fn without_padding(self) -> Self {
        struct Pack;
        impl<B: Backend> ModuleMapper<B> for Pack {
            fn map_float<const D: usize>(
                &mut self,
                parameter: Param<Tensor<B, D>>,
            ) -> Param<Tensor<B, D>> {
                parameter.map(|x| {
                    let (shape, require_grad) = (x.dims(), x.is_require_grad());
                    // One long row has no padding.
                    let row = x.detach().reshape([shape.iter().product::<usize>()]);
                    row.reshape(shape).detach().set_require_grad(require_grad)
                })
            }
        }
        self.map(&mut Pack).changed()
    }
}

impl<B: KernelBackend> CausalLm<B> {
    /// The same network, in which each attention computes queries, keys and values by one product. This is faster on a
    /// GPU. Call it last, and only for inference: afterwards, the network can be neither trained, cast, packed nor
    /// saved.
    pub fn fuse_projections(mut self) -> Self {
        for layer in &mut self.backbone.layers {
            layer.mixer.fuse_projections();
        }
        self.changed()
    }

    /// The same network in which every attention sees no more than `window`; see
    /// [`narrow_attention`](crate::TokenMixer::narrow_attention). `None` if no layer has attention.
    ///
    /// # Panics
    /// If `window.window` is 0.
    pub fn with_attention_within(self, window: Window) -> Option<Self> {
        assert!(window.window > 0, "a window must have a token");
        self.change_mixers(|mixer| mixer.narrow_attention(window))
    }

    /// The same network, in which the output of every attention is zero. A layer whose mixer is attention is then only
    /// its MLP: `x + mlp(norm(x))`. `None` if no layer has attention. For inference: the network can be neither trained
    /// nor saved.
    pub fn without_attention(self) -> Option<Self> {
        self.change_mixers(|mixer| mixer.silence_attention())
    }

    /// The same network, in which the output of every state-space mixer is zero, so that only the attention beside it
    /// remains. `None` if no layer has a state-space mixer. For inference, as
    /// [`without_attention`](Self::without_attention).
    pub fn without_ssm(self) -> Option<Self> {
        self.change_mixers(|mixer| mixer.silence_ssm())
    }

    /// The same network in which every state-space mixer forgets its state before each token whose position is a
    /// multiple of `tokens`; see [`reset_state_every`](crate::TokenMixer::reset_state_every). `None` if no layer has such a
    /// mixer. For inference.
    ///
    /// # Panics
    /// If `tokens` is 0.
    pub fn with_state_reset_every(self, tokens: usize) -> Option<Self> {
        assert!(tokens > 0, "a state must last for a token");
        self.change_mixers(|mixer| mixer.reset_state_every(tokens))
    }

    /// The same network, in which windowed attention that is added to a state-space mixer adds nothing to the rows of a
    /// batch for which `rows` is true; see [`leave_out_window`](crate::TokenMixer::leave_out_window). `None` if no
    /// layer has such attention.
    pub fn without_window_in(self, rows: &[bool]) -> Option<Self> {
        self.change_mixers(|mixer| mixer.leave_out_window(rows))
    }

    /// The network after `change` was called for every mixer. `change` returns whether it changed the mixer; if it
    /// changed none, the result is `None`.
    fn change_mixers(mut self, change: impl Fn(&mut Mixer<B>) -> bool) -> Option<Self> {
        let mut is_changed = false;
        for layer in &mut self.backbone.layers {
            is_changed |= change(&mut layer.mixer);
        }
        is_changed.then(|| self.changed())
    }

    /// The same network with the weights of its projections in `form`, as far as their rows allow: for inference. All
    /// other parameters stay as they are, also the embedding, of which each token reads only one row. Weights that are
    /// already packed stay as they are. If `form` is 4 bits, the head gets 8 bits, because 4 bits cost most there
    /// (SmolLM2-135M: the perplexity rose from 42.0 to 46.6).
    pub fn to_form(mut self, form: Form) -> Self {
        self.own_head();
        let of_head = match form {
            Form::Int4 => Form::Int8,
            form => form,
        };
        self.lm_head.iter_mut().for_each(|head| head.pack(of_head));
        self.each_linear(|linear| linear.pack(form));
        self.changed()
    }

    /// [`to_form`](Self::to_form) in 8 bits, one scale a row.
    pub fn to_int8(self) -> Self {
        self.to_form(Form::Int8)
    }

    /// What the weights of its projections are stored as; `Int4` if some are.
    pub fn form(&self) -> Form {
        let forms = self.forms();
        let mut known = [Form::Int4, Form::Int8].into_iter();
        known
            .find(|form| forms.contains(form))
            .unwrap_or(Form::Float)
    }

    /// What the weight of each projection is stored as.
    pub fn forms(&self) -> Vec<Form> {
        let mut forms = Vec::new();
        self.clone().each_linear(|linear| forms.push(linear.form()));
        forms
    }

    /// Bytes of weights that a decoding step reads: those of every projection.
    pub fn step_bytes(&self) -> usize {
        let mut bytes = 0;
        let mut all = self.clone();
        all.own_head();
        all.each_linear(|linear| bytes += linear.bytes());
        bytes
    }

    /// Calls `visit` with every projection that a step computes: those of mixers and MLPs, and the head if it is not
    /// tied to the embedding.
    pub(crate) fn each_linear(&mut self, mut visit: impl FnMut(&mut Linear<B>)) {
        for layer in &mut self.backbone.layers {
            layer.mixer.linears_mut().into_iter().for_each(&mut visit);
            layer.mlp.linears_mut().for_each(&mut visit);
        }
        self.lm_head.iter_mut().for_each(visit);
    }

    /// Runs `ids [b, l]` through the network, and returns the outputs that `taps` asks for.
    ///
    /// This is the plain form, for tests and tools: it holds what is asked for of all layers at once. Training
    /// goes through the layers itself, and through the head a block of tokens at a time.
    pub fn forward(&self, ids: impl Into<TokenRows<B>>, taps: Taps) -> Outputs<B> {
        let TokenRows { ids, documents } = ids.into();
        let mut x = self.backbone.embedding.forward(ids);
        let mut outputs = Outputs {
            logits: None,
            hidden_states: Vec::new(),
            mixer_outputs: Vec::new(),
            mixing_matrices: Vec::new(),
        };
        if taps.hidden_states {
            outputs.hidden_states.push(x.clone());
        }
        for layer in &self.backbone.layers {
            let tapped = layer.forward_tapped((x, &documents), taps.mixing_matrices);
            x = tapped.hidden_state;
            outputs.mixing_matrices.extend(tapped.mixing_matrix);
            if taps.mixer_outputs {
                outputs.mixer_outputs.push(tapped.mixer_output);
            }
            if taps.hidden_states {
                outputs.hidden_states.push(x.clone());
            }
        }
        outputs.logits = taps
            .logits
            .then(|| self.logits(self.backbone.final_layernorm.forward(x)));
        outputs
    }

    /// What the head reads: `ids [b, l]` to `[b, l, d_model]`, after the final normalisation.
    pub fn features(&self, ids: impl Into<TokenRows<B>>) -> Tensor<B, 3> {
        let TokenRows { ids, documents } = ids.into();
        let x = self.backbone.embedding.forward(ids);
        let layers = self.backbone.layers.iter();
        let x = layers.fold(x, |x, layer| layer.forward((x, &documents)));
        self.backbone.final_layernorm.forward(x)
    }

    /// `features [b, l, d_model]` to logits `[b, l, vocab_size]`.
    pub fn logits(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        self.head().forward(features)
    }
}
