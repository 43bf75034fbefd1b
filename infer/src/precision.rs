//! The precision of a model's parameters, and loading a model in it.

use std::path::Path;

use burn::tensor::{DType, Element};
use clap::ValueEnum;
use kernels::KernelBackend;
use model::{CausalLm, ModelConfig, WeightsError};

/// Why a model cannot be loaded in some precision.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// The device does not compute in that dtype.
    #[error(
        "this backend does not keep parameters in {dtype} on this device; leave --dtype out, or give \
         f32"
    )]
    Dtype {
        /// The dtype.
        dtype: String,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] WeightsError),
}

/// What parameters are kept in. Sums, normalisations, softmax, decays and the states of scans are always
/// f32; the keys and values that attention caches have the dtype of the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// As the files have them, where the device computes in that; or else f32
    #[default]
    Auto,
    /// 32 bits
    F32,
    /// 16 bits, of which 5 are the exponent's
    F16,
    /// 16 bits, of which 8 are the exponent's
    Bf16,
    /// The weights of projections in 8 bits with a scale a row, all else as by auto
    Int8,
}

impl Precision {
    /// The dtype of parameters that are stored in `stored`, on `device`.
    ///
    /// # Errors
    /// [`PrecisionError::Dtype`] if the device does not compute in it.
    pub fn dtype<B: KernelBackend>(
        self,
        stored: Option<DType>,
        device: &B::Device,
    ) -> Result<DType, PrecisionError> {
        let own = <B::FloatElem as Element>::dtype();
        let dtype = match self {
            Self::Auto | Self::Int8 => {
                let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
                let stored = stored.filter(half);
                return Ok(stored
                    .filter(|dtype| B::holds(device, *dtype))
                    .unwrap_or(own));
            }
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        };
        if B::holds(device, dtype) {
            Ok(dtype)
        } else {
            Err(PrecisionError::Dtype {
                dtype: format!("{dtype:?}").to_lowercase(),
            })
        }
    }

    /// Loads the model in `folder` onto `device`, with its parameters in this precision.
    ///
    /// # Errors
    /// [`PrecisionError::Dtype`] before a file is read, and [`PrecisionError::Model`].
    pub fn load<B: KernelBackend>(
        self,
        folder: &Path,
        device: &B::Device,
    ) -> Result<(ModelConfig, CausalLm<B>), PrecisionError> {
        // Apart from the memory that comes and goes: CubeCL looks through all tensors of a page for each new one, which
        // takes longer than a step of a small model.
        B::memory_persistent_allocations(device, (), |()| self.read(folder, device))
    }

    /// See [`load`](Self::load).
    fn read<B: KernelBackend>(
        self,
        folder: &Path,
        device: &B::Device,
    ) -> Result<(ModelConfig, CausalLm<B>), PrecisionError> {
        // Refused before gigabytes are read.
        let fallback = self.dtype::<B>(None, device)?;
        let choose = |stored| self.dtype::<B>(stored, device).unwrap_or(fallback);
        let (config, model) = model::load_any_as::<B>(folder, choose, device)?;
        match self {
            Self::Int8 => Ok((config, model.to_int8().without_padding())),
            _ => Ok((config, model.without_padding())),
        }
    }
}
