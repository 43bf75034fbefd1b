//! Reads the tensors of a mixer's state from a state file.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

/// Why the tensors of a file are not a state of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// One that the network needs is absent.
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

/// The tensors of one layer of a file.
pub struct StateTensors<'a> {
    pub(crate) layer: usize,
    /// The data of a tensor by its name in the file.
    pub(crate) data: &'a mut dyn FnMut(&str) -> Option<TensorData>,
}

/// The name in the file of a tensor of a layer, such as `layers.3.ssm`.
pub(crate) fn state_name(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

impl StateTensors<'_> {
    /// The tensor that the layer calls `part`, if it has this `shape`, and this `dtype` or one that it widens to.
    ///
    /// # Errors
    /// [`StateError`] says what is wrong with it.
    pub fn take<B: Backend, const D: usize>(
        &mut self,
        part: &str,
        shape: [usize; D],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, StateError> {
        let name = state_name(self.layer, part);
        let Some(data) = (self.data)(&name) else {
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
}
