//! What decoding carries from one token to the next.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;
use kernels::attention::step::{Cache, NewToken};

use crate::precision::to_dtype;

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
            Self::DiscreteMamba2(state) => state.bytes(),
            Self::Attention(cache) => cache.bytes(),
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

impl<B: Backend> Mamba2State<B> {
    /// Bytes that the state's tensors hold.
    pub fn bytes(&self) -> usize {
        bytes(&self.conv) + bytes(&self.ssm)
    }
}

/// The keys (rotated) and values of every token so far.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    /// `None` before the first token, as backends differ on empty tensors.
    cache: Option<Cache<B>>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { cache: None }
    }
}

impl<B: Backend> KvCache<B> {
    /// A cache of tokens' keys and values, both `[b, t, g, p]`.
    pub fn of(keys: Tensor<B, 4>, values: Tensor<B, 4>) -> Self {
        let len = keys.dims()[1];
        Self {
            cache: Some(Cache { keys, values, len }),
        }
    }

    /// The tokens' keys and values, both `[b, t, g, p]`; `None` before the first.
    pub fn keys_and_values(&self) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
        self.cache.as_ref().map(Cache::filled)
    }

    /// Bytes of the tokens' keys and values. There may be room for more.
    pub fn bytes(&self) -> usize {
        let Some(cache) = &self.cache else { return 0 };
        let capacity = cache.keys.dims()[1];
        (bytes(&cache.keys) + bytes(&cache.values)) / capacity * cache.len
    }

    /// Tokens read so far.
    pub(crate) fn len(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.len)
    }

    /// Appends keys and values `[b, l, g, p]` and returns those of all tokens.
    pub(crate) fn append(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (keys, values) = match self.keys_and_values() {
            None => (keys, values),
            Some((earlier_keys, earlier_values)) => {
                // A step may have cached in a wider dtype than that of the parameters.
                let join = |earlier, new: Tensor<B, 4>| {
                    let earlier = to_dtype(earlier, new.dtype());
                    Tensor::cat(vec![earlier, new], 1)
                };
                (join(earlier_keys, keys), join(earlier_values, values))
            }
        };
        *self = Self::of(keys.clone(), values.clone());
        (keys, values)
    }

    /// Attends from a new token with `h` heads, which joins.
    pub(crate) fn step(&mut self, token: NewToken<B>, h: usize) -> Tensor<B, 2>
    where
        B: KernelBackend,
    {
        let (y, cache) = kernels::attention_step(token, self.cache.take(), h);
        self.cache = Some(cache);
        y
    }
}
