//! The cache of the keys and values of earlier tokens; within a window, only of the tokens that later ones can see.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};
use kernels::decode::attention_step::{Cache, NewToken};
use kernels::{KernelBackend, Window};

use crate::mixers::{DecodingState, MixerState, StateRows, bytes_of};
use crate::precision::to_dtype;

/// The keys (rotated) and values of every token so far; with a window, of the sinks and the last tokens alone. In
/// the dtype of the parameters after a prefill, f32 or wider after a step.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    /// `None` before the first token, because backends handle empty tensors differently.
    cache: Option<Cache<B>>,
    /// Tokens read so far.
    position: usize,
    /// Of the last step.
    window: Option<Window>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self {
            cache: None,
            position: 0,
            window: None,
        }
    }
}

impl<B: Backend> KvCache<B> {
    /// A cache of the keys and values, both `[b, t, g, p]`, of all tokens so far.
    pub fn of(keys: Tensor<B, 4>, values: Tensor<B, 4>) -> Self {
        let position = keys.dims()[1];
        Self::after(position, keys, values)
    }

    /// A cache of what is kept after `position` tokens.
    pub(super) fn after(position: usize, keys: Tensor<B, 4>, values: Tensor<B, 4>) -> Self {
        Self {
            cache: Some(Cache::of(keys, values)),
            position,
            window: None,
        }
    }

    /// The keys and values that are kept, both `[b, t, g, p]`; `None` before the first token.
    pub fn keys_and_values(&self) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
        self.cache.as_ref().map(Cache::filled)
    }

    /// Tokens read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// How many steps within `window` from here on make the same launches on the same memory.
    pub(super) fn steps_alike(&self, window: Option<Window>) -> usize {
        let cache = self.cache.as_ref();
        cache.map_or(0, |cache| cache.steps_alike(window))
    }

    /// Appends keys and values `[b, l, g, p]`, and returns those that were kept with them. Of both, only what
    /// `window` leaves is kept for later.
    pub(super) fn append(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
        window: Option<Window>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        self.position += keys.dims()[1];
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
        let all = Cache::of(keys.clone(), values.clone());
        self.cache = Some(match window {
            Some(window) => all.kept(window),
            None => all,
        });
        (keys, values)
    }

    /// Attends from a new token with `h` heads, which joins.
    pub(super) fn step(
        &mut self,
        token: NewToken<B>,
        h: usize,
        window: Option<Window>,
    ) -> Tensor<B, 2>
    where
        B: KernelBackend,
    {
        let (y, cache) = kernels::attention_step_within(token, self.cache.take(), h, window);
        self.position += 1;
        self.cache = Some(cache);
        self.window = window;
        y
    }
}

impl<B: Backend> DecodingState for KvCache<B> {
    /// Of the keys and values that are kept. There may be room for more.
    fn bytes(&self) -> usize {
        let Some(cache) = &self.cache else { return 0 };
        let capacity = cache.keys.dims()[1];
        (bytes_of(&cache.keys) + bytes_of(&cache.values)) / capacity * cache.len
    }

    /// A step adds one token, which is little beside those that it reads.
    fn step_traffic(&self) -> usize {
        self.bytes()
    }

    fn set_position(&mut self, position: usize) {
        while self.position < position {
            let cache = self.cache.take();
            self.cache = cache.map(|cache| cache.advanced(self.window));
            self.position += 1;
        }
        while self.position > position {
            if let Some(cache) = &mut self.cache {
                // If the window is full, each new token drops an old one.
                if cache.gap.len > 0 {
                    cache.gap.len -= 1;
                } else {
                    cache.len -= 1;
                }
            }
            self.position -= 1;
        }
    }

    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError> {
        let Some((keys, values)) = self.keys_and_values() else {
            return Ok(vec![]);
        };
        Ok(vec![
            ("keys", keys.try_into_data()?),
            ("values", values.try_into_data()?),
        ])
    }
}

/// The caches of a batch, one a row, as long as their sequences: the projections around them, where the
/// weights are, run over all rows at once, and only the attention itself goes row by row.
#[derive(Debug)]
pub struct KvCaches<B: Backend>(pub(super) Vec<KvCache<B>>);

impl<B: Backend> StateRows<B> for KvCaches<B> {
    fn put(&mut self, row: usize, mut state: MixerState<B>) {
        self.0[row] = std::mem::take(KvCache::within(&mut state));
    }

    fn free(&mut self, row: usize) {
        self.0[row] = KvCache::default();
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(KvCache::bytes).sum()
    }
}
