//! Outputs of single attention heads, and the output of a layer in which the outputs of some heads are replaced.
//!
//! This measures what a head contributes in the simplest way: its output before the output projection is replaced, and
//! the later layers are computed again.

use burn::tensor::{Tensor, TensorData};
use kernels::{KernelBackend, Window};

use crate::block::Block;
use crate::mixers::Mixer;

/// What an attention head does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadSight {
    /// It sees what the attention that it belongs to sees.
    Own,
    /// It sees no more than the window of [`HeadOutputs::new`].
    Window,
    /// Its output is zero.
    Nothing,
}

/// The outputs of all heads of one layer for one input, before the output projection, once for each [`HeadSight`] that
/// was asked for.
#[derive(Debug, Clone)]
pub struct HeadOutputs<B: KernelBackend> {
    /// `[b, l, h, p]`; `None` where no head sees so.
    own: Option<Tensor<B, 4>>,
    within: Option<Tensor<B, 4>>,
}

impl<B: KernelBackend> HeadOutputs<B> {
    /// Computes the outputs for the attention of `block` and its input `x [b, l, d_model]`, which the layer first
    /// normalises, once for each kind in `sights`. `None` if the layer's mixer is not softmax attention.
    pub fn new(
        block: &Block<B>,
        x: Tensor<B, 3>,
        sights: &[HeadSight],
        window: Window,
    ) -> Option<Self> {
        let Mixer::Attention(attention) = &block.mixer else {
            return None;
        };
        let u = block.input_layernorm.forward(x);
        let is_asked = |sight| sights.contains(&sight);
        if is_asked(HeadSight::Window) {
            let [within, own] = attention.contexts(u, window);
            let within = Some(within);
            return Some(Self {
                own: Some(own),
                within,
            });
        }
        Some(Self {
            own: Some(attention.context(u)),
            within: None,
        })
    }
}

impl<B: KernelBackend> Block<B> {
    /// The heads of the layer's attention; 0 if its mixer is no softmax attention.
    pub fn attention_heads(&self) -> usize {
        match &self.mixer {
            Mixer::Attention(attention) => attention.config().n_heads,
            _ => 0,
        }
    }

    /// Query heads that share keys and values; 0 if the layer's mixer is no softmax attention.
    pub fn attention_group(&self) -> usize {
        match &self.mixer {
            Mixer::Attention(attention) => {
                attention.config().n_heads / attention.config().n_kv_heads
            }
            _ => 0,
        }
    }

    /// The layer's output for `x [b, l, d_model]`, of whose heads each sees as `sights` says. `outputs` are those of the
    /// same `x`. With every head's own sight it is [`forward`](Self::forward).
    ///
    /// # Panics
    /// If the mixer is no softmax attention, `sights` are not as many as it has heads, or `outputs` has none for one of
    /// them.
    pub fn forward_with_heads(
        &self,
        x: Tensor<B, 3>,
        outputs: &HeadOutputs<B>,
        sights: &[HeadSight],
    ) -> Tensor<B, 3> {
        let Mixer::Attention(attention) = &self.mixer else {
            panic!("a layer with softmax attention");
        };
        assert_eq!(sights.len(), self.attention_heads(), "a sight a head");
        let of = |sight, outputs: &Option<Tensor<B, 4>>| {
            if !sights.contains(&sight) {
                return None;
            }
            let y_blhp = outputs.clone().expect("outputs that were asked for");
            if sights.iter().all(|other| *other == sight) {
                return Some(y_blhp);
            }
            // Products with 1 and 0 and sums with 0 change no bits of a finite number.
            let mask: Vec<f32> = (sights.iter())
                .map(|other| f32::from(u8::from(*other == sight)))
                .collect();
            let data = TensorData::new(mask, [1, 1, sights.len(), 1]);
            let options = (&y_blhp.device(), y_blhp.dtype());
            let mask = Tensor::<B, 4>::from_data(data, options);
            Some(y_blhp * mask)
        };
        let own = of(HeadSight::Own, &outputs.own);
        let within = of(HeadSight::Window, &outputs.within);
        let normed = self.input_layernorm.forward(x.clone());
        let y_blhp = match (own, within) {
            (Some(own), Some(within)) => own + within,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => {
                let any = outputs.own.as_ref().or(outputs.within.as_ref());
                any.expect("outputs").zeros_like()
            }
        };
        let mixed = attention.merge_onto(x, y_blhp);
        self.add_mlp(mixed, normed)
    }
}
