//! Decoding steps that a device repeats from a recording.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;
use kernels::decode::replay::{Recording, record};

use crate::lm::CausalLm;
use crate::mixers::MixerState;

/// Steps that are computed before one is recorded: the first may leave tensors of another dtype in the state, and short
/// texts are not worth a recording.
const COMPUTED: usize = 4;
/// How often a step is tried that the device did not record, each time after twice as many computed ones: the first may still
/// reserve memory or compile kernels.
const TRIES: usize = 4;
/// Steps that are worth a recording.
const WORTH: usize = 16;

/// How a state's next step is taken: computed, or repeated by the device where a step before was recorded
/// ([`kernels::decode::replay`]).
///
/// A recording belongs to the memory of one state. A clone of a state shares that memory until one of the two moves on;
/// therefore a clone has no recording, and a state that shares its memory with a clone loses its own. So does one whose
/// tensors were [lent](Self::lend).
#[derive(Debug)]
pub(crate) struct Steps<B: Backend> {
    /// Held by each state that may share the memory of this one: whether one of them has lent its tensors.
    sharers: Arc<AtomicBool>,
    /// Steps computed since the state began, or was shared, or since the last try.
    computed: usize,
    /// Steps that were not recorded though it was tried.
    failed: usize,
    recorded: Option<Recorded<B>>,
}

#[derive(Debug)]
struct Recorded<B: Backend> {
    recording: Recording<B>,
    /// Of the network whose step it is.
    identity: Identity,
    /// Ids of a step.
    batch: usize,
    /// Steps that make its launches, it included.
    alike: usize,
    /// Steps that were taken since.
    since: usize,
}

/// Distinguishes a network from other networks, and from itself before a change. Clones have the same identity, because
/// they have the same parameters in the same memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity(Arc<()>);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<B: Backend> Default for Steps<B> {
    fn default() -> Self {
        Self {
            sharers: Arc::default(),
            computed: 0,
            failed: 0,
            recorded: None,
        }
    }
}

impl<B: Backend> Clone for Steps<B> {
    fn clone(&self) -> Self {
        Self {
            sharers: self.sharers.clone(),
            computed: 0,
            failed: 0,
            recorded: None,
        }
    }
}

impl<B: Backend> Steps<B> {
    /// Notes that other code gets tensors of the state, and may still hold them at the next step.
    pub(crate) fn lend(&self) {
        self.sharers.store(true, Ordering::Relaxed);
    }

    /// Whether other code may hold tensors of the state.
    fn are_shared(&self) -> bool {
        Arc::strong_count(&self.sharers) > 1 || self.sharers.load(Ordering::Relaxed)
    }
}

impl<B: KernelBackend> Steps<B> {
    /// Returns the logits of the next step of `network`: `ids [b]` to `[b, v]`. `compute` computes a step; it is called
    /// once, twice (to record), or not at all (if a recording is repeated), so the caller must set any counter that
    /// `compute` changes. `alike` is the number of steps, from this one on, that make the same launches on the same
    /// memory.
    pub(crate) fn take(
        &mut self,
        network: &CausalLm<B>,
        ids: Tensor<B, 1, Int>,
        alike: usize,
        mut compute: impl FnMut(Tensor<B, 1, Int>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        // If the memory is shared, the old value is held until the step is queued, because the step moves the state to
        // its own memory. Until then, another state that shares the memory, perhaps on another thread, must see that it
        // is shared.
        let _shared = self.are_shared().then(|| mem::take(self));
        let (identity, [batch]) = (&network.identity, ids.dims());
        if let Some(recorded) = &mut self.recorded
            && recorded.identity == *identity
            && recorded.batch == batch
        {
            recorded.since += 1;
            if recorded.since < recorded.alike {
                let since = recorded.since as u32;
                if let Some(logits) = recorded.recording.replay(ids.clone(), since) {
                    return logits;
                }
                return compute(ids);
            }
            // The recording is used up: this step makes room for more tokens, and a later step is recorded anew.
            self.recorded = None;
            self.computed = COMPUTED;
            return compute(ids);
        }
        self.recorded = None;
        if self.computed < COMPUTED << self.failed {
            self.computed += 1;
            return compute(ids);
        }
        if self.failed == TRIES || alike < WORTH {
            return compute(ids);
        }
        let (logits, recording) = record(ids, &mut compute);
        match recording {
            Some(recording) => {
                self.failed = 0;
                self.recorded = Some(Recorded {
                    recording,
                    identity: identity.clone(),
                    batch,
                    alike,
                    since: 0,
                });
            }
            None => {
                self.failed += 1;
                self.computed = 0;
            }
        }
        logits
    }
}

impl<B: KernelBackend> CausalLm<B> {
    /// Whether all steps make the same launches.
    pub(crate) fn repeats_its_steps(&self) -> bool {
        let mut layers = self.backbone.layers.iter();
        layers.all(|layer| layer.mixer.repeats_its_steps())
    }

    /// How many steps from these `states` of the layers on make the same launches.
    pub(crate) fn steps_alike(&self, states: &[MixerState<B>]) -> usize {
        let both = self.backbone.layers.iter().zip(states);
        let alike = both.map(|(layer, state)| layer.mixer.steps_alike(state));
        alike.min().unwrap_or(0)
    }
}
