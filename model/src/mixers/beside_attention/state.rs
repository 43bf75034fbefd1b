//! The states of both.

use burn::tensor::TensorData;
use burn::tensor::backend::{Backend, ExecutionError};

use crate::mixers::{DecodingState, MixerRows, MixerState, StateRows};

/// The states of the state-space mixer and of the attention beside it.
#[derive(Debug, Clone)]
pub struct BesideState<B: Backend> {
    /// The state-space mixer's.
    pub ssm: Box<MixerState<B>>,
    /// The attention's, where there is one.
    pub attention: Option<Box<MixerState<B>>>,
}

impl<B: Backend> BesideState<B> {
    /// Both.
    fn each(&self) -> impl Iterator<Item = &MixerState<B>> {
        std::iter::once(&*self.ssm).chain(self.attention.as_deref())
    }
}

impl<B: Backend> DecodingState for BesideState<B> {
    fn bytes(&self) -> usize {
        self.each().map(|state| state.bytes()).sum()
    }

    fn step_traffic(&self) -> usize {
        self.each().map(|state| state.step_traffic()).sum()
    }

    fn set_position(&mut self, position: usize) {
        self.ssm.set_position(position);
        if let Some(attention) = &mut self.attention {
            attention.set_position(position);
        }
    }

    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError> {
        let mut tensors = vec![];
        for state in self.each() {
            tensors.extend(state.tensors()?);
        }
        Ok(tensors)
    }
}

/// The states of a batch, of both.
#[derive(Debug)]
pub struct BesideRows<B: Backend> {
    pub(super) ssm: Box<MixerRows<B>>,
    pub(super) attention: Option<Box<MixerRows<B>>>,
}

impl<B: Backend> StateRows<B> for BesideRows<B> {
    fn put(&mut self, row: usize, mut state: MixerState<B>) {
        let BesideState { ssm, attention } = BesideState::within(&mut state).clone();
        drop(state);
        self.ssm.put(row, *ssm);
        if let (Some(rows), Some(state)) = (&mut self.attention, attention) {
            rows.put(row, *state);
        }
    }

    fn free(&mut self, row: usize) {
        self.ssm.free(row);
        if let Some(rows) = &mut self.attention {
            rows.free(row);
        }
    }

    fn bytes(&self) -> usize {
        let attention = self.attention.as_ref();
        self.ssm.bytes() + attention.map_or(0, |rows| rows.bytes())
    }
}
