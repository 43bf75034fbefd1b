//! What decoding carries from one token to the next.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// The state of a whole network. For Phi-Mamba its size does not depend on how much was read; each
/// attention layer of a hybrid or a teacher adds two rows a token.
#[derive(Debug, Clone)]
pub struct State<B: Backend> {
    /// One a layer.
    pub layers: Vec<MixerState<B>>,
    /// Tokens read so far.
    pub position: usize,
}

impl<B: Backend> State<B> {
    /// Bytes that the state's tensors hold.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(MixerState::bytes).sum()
    }
}

/// The state of one mixer.
#[derive(Debug, Clone)]
pub enum MixerState<B: Backend> {
    /// Of constant size.
    DiscreteMamba2(Mamba2State<B>),
    /// As long as what was read.
    Attention(KvCache<B>),
}

impl<B: Backend> MixerState<B> {
    /// Bytes that the state's tensors hold.
    pub fn bytes(&self) -> usize {
        match self {
            Self::DiscreteMamba2(state) => bytes(&state.conv) + bytes(&state.ssm),
            Self::Attention(cache) => cache
                .keys_and_values
                .as_ref()
                .map_or(0, |(keys, values)| bytes(keys) + bytes(values)),
        }
    }
}

fn bytes<B: Backend, const D: usize>(x: &Tensor<B, D>) -> usize {
    x.shape().num_elements() * x.dtype().size()
}

/// The state of a [`DiscreteMamba2`](crate::DiscreteMamba2) mixer.
#[derive(Debug, Clone)]
pub struct Mamba2State<B: Backend> {
    /// The last `d_conv` inputs of the convolution, the latest last, zeros before the first:
    /// `[b, conv_dim, d_conv]`. One more than the next output needs, as published.
    pub conv: Tensor<B, 3>,
    /// `[b, h, p, n]`; f32 in a half-precision network.
    pub ssm: Tensor<B, 4>,
}

/// The keys (rotated) and values of every token so far.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    /// Both `[b, t, g, p]`; `None` before the first token, as backends differ on empty tensors.
    pub keys_and_values: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self {
            keys_and_values: None,
        }
    }
}

impl<B: Backend> KvCache<B> {
    /// Tokens read so far.
    pub(crate) fn len(&self) -> usize {
        let cached = self.keys_and_values.as_ref();
        cached.map_or(0, |(keys, _)| keys.dims()[1])
    }

    /// Appends keys and values `[b, l, g, p]` and returns those of all tokens.
    pub(crate) fn append(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let all = match self.keys_and_values.take() {
            None => (keys, values),
            Some((earlier_keys, earlier_values)) => (
                Tensor::cat(vec![earlier_keys, keys], 1),
                Tensor::cat(vec![earlier_values, values], 1),
            ),
        };
        self.keys_and_values.insert(all).clone()
    }
}
