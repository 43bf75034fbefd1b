//! A state as named tensors, for a file, and back.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{DType, Tensor, TensorData};

use crate::block::Mixer;
use crate::lm::CausalLm;
use crate::state::{KvCache, Mamba2State, MixerState, State};

/// Why tensors are not the state of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// One that the network needs is not there.
    #[error("`{name}` is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// One has not the network's sizes.
    #[error("`{name}` is {found:?}; it should be {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// One has not the network's precision.
    #[error("`{name}` holds {found:?}; the network computes it in {expected:?}")]
    Dtype {
        /// The tensor.
        name: String,
        /// What it holds.
        found: DType,
        /// What it should hold.
        expected: DType,
    },
}

/// The name of a part of a layer's state.
fn name(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

impl<B: Backend> State<B> {
    /// Every tensor of the state under its name, such as `layers.3.ssm`.
    ///
    /// # Errors
    /// The backend's, if they cannot be read from the device.
    pub fn to_tensors(&self) -> Result<Vec<(String, TensorData)>, ExecutionError> {
        let mut tensors = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            match layer {
                MixerState::DiscreteMamba2(Mamba2State { conv, ssm }) => {
                    tensors.push((name(i, "conv"), conv.clone().try_into_data()?));
                    tensors.push((name(i, "ssm"), ssm.clone().try_into_data()?));
                }
                MixerState::Attention(cache) => {
                    if let Some((keys, values)) = cache.keys_and_values() {
                        tensors.push((name(i, "keys"), keys.try_into_data()?));
                        tensors.push((name(i, "values"), values.try_into_data()?));
                    }
                }
            }
        }
        Ok(tensors)
    }
}

impl<B: Backend> CausalLm<B> {
    /// The state of one sequence of `position` tokens that [`State::to_tensors`] has taken apart,
    /// given each tensor's data by its name.
    ///
    /// # Errors
    /// [`StateError`] for the first tensor that is not what this network needs.
    pub fn state_from_tensors(
        &self,
        position: usize,
        mut data: impl FnMut(&str) -> Option<TensorData>,
        device: &B::Device,
    ) -> Result<State<B>, StateError> {
        let mut state = self.new_state(1, device);
        state.position = position;
        let layers = self.backbone.layers.iter().zip(&mut state.layers);
        for (i, (layer, state)) in layers.enumerate() {
            match (&layer.mixer, state) {
                (Mixer::Attention(attention), MixerState::Attention(cache)) if position > 0 => {
                    let dtype = attention.k_proj.weight.val().dtype();
                    let shape = attention.cache_shape(position);
                    let mut get = |part| tensor(name(i, part), &mut data, shape, dtype, device);
                    *cache = KvCache::of(get("keys")?, get("values")?);
                }
                (_, MixerState::Attention(_)) => {}
                (_, MixerState::DiscreteMamba2(mamba)) => {
                    let (shape, dtype) = (mamba.conv.dims(), mamba.conv.dtype());
                    mamba.conv = tensor(name(i, "conv"), &mut data, shape, dtype, device)?;
                    let (shape, dtype) = (mamba.ssm.dims(), mamba.ssm.dtype());
                    mamba.ssm = tensor(name(i, "ssm"), &mut data, shape, dtype, device)?;
                }
            }
        }
        Ok(state)
    }
}

/// The tensor called `name`, if it is as the network would have made it.
fn tensor<B: Backend, const D: usize>(
    name: String,
    data: &mut impl FnMut(&str) -> Option<TensorData>,
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
) -> Result<Tensor<B, D>, StateError> {
    let Some(data) = data(&name) else {
        return Err(StateError::Missing { name });
    };
    if data.shape[..] != shape {
        let (found, expected) = (data.shape.to_vec(), shape.to_vec());
        return Err(StateError::Shape {
            name,
            found,
            expected,
        });
    }
    // A network in half precision keeps some of its state in f32, and another may read it in f32.
    let dtype = match (data.dtype, dtype) {
        (DType::F32, DType::F16 | DType::BF16) => DType::F32,
        (DType::F32 | DType::F16 | DType::BF16, DType::F32) => DType::F32,
        (found, expected) if found == expected => expected,
        (found, expected) => {
            return Err(StateError::Dtype {
                name,
                found,
                expected,
            });
        }
    };
    Ok(Tensor::from_data(
        data.convert_dtype(dtype),
        (device, dtype),
    ))
}
