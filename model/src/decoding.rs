//! Decoding: a network reads a sequence piece by piece, and keeps a state between the tokens.

use std::mem;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;

use crate::lm::CausalLm;
use crate::mixers::{MixerState, StateError, StateTensors, state_name};
use crate::precision::widen;
use crate::steps::Steps;

/// The decoding state of a whole network, for a batch of sequences of the same length. For Phi-Mamba, its size does not
/// depend on the number of tokens read; each attention layer adds two rows for each token.
///
/// On a GPU a state that has taken a few steps also holds the launches of a step, and with them the memory of the network's
/// parameters, even if the network is dropped.
#[derive(Debug, Clone)]
pub struct State<B: Backend> {
    /// One a layer, first to last.
    pub(crate) layers: Vec<MixerState<B>>,
    /// Tokens read so far.
    pub position: usize,
    /// The recorded step that the device repeats, if there is one.
    pub(crate) steps: Steps<B>,
}

impl<B: Backend> State<B> {
    /// One a layer, first to last. Clones of their tensors keep their values when the state moves on.
    pub fn layers(&self) -> &[MixerState<B>] {
        self.steps.lend();
        &self.layers
    }

    /// Bytes that the state's tensors hold.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }

    /// Bytes that a decoding step reads and writes of the state.
    pub fn step_traffic(&self) -> usize {
        self.layers.iter().map(|layer| layer.step_traffic()).sum()
    }

    /// Every tensor of the state under its name, such as `layers.3.ssm`.
    ///
    /// # Errors
    /// The backend's error, if the tensors cannot be read from the device.
    pub fn to_tensors(&self) -> Result<Vec<(String, TensorData)>, ExecutionError> {
        let mut tensors = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let parts = layer.tensors()?.into_iter();
            tensors.extend(parts.map(|(part, data)| (state_name(i, part), data)));
        }
        Ok(tensors)
    }
}

impl<B: KernelBackend> CausalLm<B> {
    /// The initial decoding state of `batch` sequences.
    pub fn new_state(&self, batch: usize, device: &B::Device) -> State<B> {
        let layers = self.backbone.layers.iter();
        State {
            layers: layers
                .map(|layer| layer.mixer.new_state(batch, device))
                .collect(),
            position: 0,
            steps: Steps::default(),
        }
    }

    /// Restores the state of one sequence of `position` tokens from the tensors of [`State::to_tensors`]. The function
    /// `data` returns the data of a tensor by its name.
    ///
    /// # Errors
    /// [`StateError`] for the first tensor that is not what this network needs.
    pub fn state_from_tensors(
        &self,
        position: usize,
        mut data: impl FnMut(&str) -> Option<TensorData>,
        device: &B::Device,
    ) -> Result<State<B>, StateError> {
        let layers = self.backbone.layers.iter().enumerate();
        let layers = layers.map(|(layer, block)| {
            let data = &mut data;
            let mut tensors = StateTensors { layer, data };
            let mixer = &block.mixer;
            mixer.state_from_tensors(position, &mut tensors, device)
        });
        Ok(State {
            layers: layers.collect::<Result<_, _>>()?,
            position,
            steps: Steps::default(),
        })
    }

    /// Reads `ids [b, l]`, which follow the tokens in `state`, and returns the logits after the last one:
    /// `[b, vocab_size]`, f32 or wider. However a sequence is split into calls, the result is the same.
    ///
    /// # Panics
    /// If `l` is 0, or `state` belongs to another network or batch.
    pub fn prefill(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 2> {
        let x = self.advance(ids, state);
        let [b, l, d] = x.dims();
        self.step_logits(widen(x.narrow(1, l - 1, 1).reshape([b, d])))
    }

    /// [`prefill`](Self::prefill) with the logits after every token: `[b, l, vocab_size]`.
    ///
    /// # Panics
    /// If `l` is 0, or `state` belongs to another network or batch.
    pub fn prefill_all(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 3> {
        let x = self.advance(ids, state);
        self.logits(self.backbone.final_layernorm.forward(x))
    }

    /// Reads one more id for each sequence, `[b]`, and returns the logits after it: `[b, vocab_size]`. The logits and
    /// all intermediate values are f32 or wider, whatever the dtype of the parameters.
    ///
    /// On a GPU, later steps of a `state` may repeat the recorded launches of an earlier step. If a method of this type
    /// returns a changed network, the recording is not used for it. A change of public fields, or by a Burn module
    /// mapper, may not be detected: begin with a new state after such a change.
    ///
    /// # Panics
    /// If `state` belongs to another network or batch.
    pub fn step(&self, ids: Tensor<B, 1, Int>, state: &mut State<B>) -> Tensor<B, 2> {
        assert_eq!(
            self.backbone.layers.len(),
            state.layers.len(),
            "the state belongs to a network with another number of layers"
        );
        let alike = self.steps_alike(&state.layers);
        state.position += 1;
        let (layers, position) = (&mut state.layers, state.position);
        let mut is_taken = false;
        let logits = state.steps.take(self, ids, alike, |ids| {
            if is_taken {
                // The step is computed a second time, to be recorded.
                let again = layers.iter_mut();
                again.for_each(|layer| layer.set_position(position - 1));
            }
            is_taken = true;
            self.step_layers(ids, layers)
        });
        for layer in layers {
            layer.set_position(position);
        }
        logits
    }

    /// A step that is computed: `ids [b]` to logits `[b, vocab_size]`, moving the states of the layers.
    fn step_layers(&self, ids: Tensor<B, 1, Int>, states: &mut [MixerState<B>]) -> Tensor<B, 2> {
        let both = self.backbone.layers.iter().zip(states);
        let x = both.fold(self.embed(ids), |x, (layer, state)| layer.step(x, state));
        self.step_logits(x)
    }

    /// What a step begins with: `ids [b]` to `[b, d_model]`.
    pub(crate) fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        kernels::decode::projections::rows(self.backbone.embedding.weight.val(), ids)
    }

    /// What a step ends with: the last layer's `x [b, d_model]` to logits `[b, vocab_size]`.
    pub(crate) fn step_logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let norm = &self.backbone.final_layernorm;
        norm.project_head(x, &self.head())
    }

    /// The last layer's output for `ids [b, l]`, `[b, l, d_model]`, moving `state` over them.
    fn advance(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 3> {
        let layers = &self.backbone.layers;
        assert_eq!(
            layers.len(),
            state.layers.len(),
            "the state belongs to a network with another number of layers"
        );
        let l = ids.dims()[1];
        assert!(l > 0, "there must be at least one id to read");
        // Prefill may replace tensors of the state, so the recorded step is dropped. The old value lives until then, so
        // that states which share this memory still know that it is shared.
        let _steps = mem::take(&mut state.steps);
        state.position += l;
        let x = self.backbone.embedding.forward(ids);
        let both = layers.iter().zip(&mut state.layers);
        both.fold(x, |x, (layer, state)| layer.prefill(x, state))
    }
}
