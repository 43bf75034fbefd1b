//! The precision of a model's parameters, and loading a model in it.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Element};
use clap::ValueEnum;
use kernels::KernelBackend;
use model::{CausalLm, ModelConfig, WeightForm, WeightsError};

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
    /// The files have weights in other bits.
    #[error(
        "{}: its weights are stored in {stored}, and cannot become {asked}; take them as they are, without --dtype, or the \
         model that they were made from", folder.display()
    )]
    Stored {
        /// The model's folder.
        folder: PathBuf,
        /// What they are stored in.
        stored: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] WeightsError),
}

/// What parameters are kept in. Sums, normalisations, softmax, decays and the states of scans are always
/// f32; the keys and values that attention caches have the dtype of the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// As the files have them, where the device computes in that; or else f32. Weights in 8 or 4 bits stay so
    #[default]
    Auto,
    /// 32 bits
    F32,
    /// 16 bits, of which 5 are the exponent's
    F16,
    /// 16 bits, of which 8 are the exponent's
    Bf16,
    /// The weights of projections in 8 bits with a scale a row, all else as by auto, or in bf16 on a GPU that has it
    Int8,
    /// The weights of projections in 4 bits with a scale for 32 of them, all else as for int8
    Int4,
}

impl Precision {
    /// The dtype on `device` of parameters that are stored in the dtype `stored`.
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
            Self::Auto | Self::Int8 | Self::Int4 => {
                let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
                // A GPU multiplies many vectors with packed weights in the dtype of the other parameters, which is slow
                // in f32.
                let packed_on_gpu = self != Self::Auto && B::queues();
                let stored = stored.filter(half).or(packed_on_gpu.then_some(DType::BF16));
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
        // Parameters get memory of their own, apart from temporary tensors: for each new tensor CubeCL searches all
        // tensors of a page, which would take longer than a step of a small model.
        B::memory_persistent_allocations(device, (), |()| self.read(folder, device))
    }

    /// See [`load`](Self::load).
    fn read<B: KernelBackend>(
        self,
        folder: &Path,
        device: &B::Device,
    ) -> Result<(ModelConfig, CausalLm<B>), PrecisionError> {
        // An error is found before gigabytes are read.
        let fallback = self.dtype::<B>(None, device)?;
        let choose = |stored| self.dtype::<B>(stored, device).unwrap_or(fallback);
        if !matches!(self, Self::Auto | Self::Int8 | Self::Int4) {
            let (config, model) = model::load_any_as::<B>(folder, choose, device)?;
            return Ok((config, model.without_padding()));
        }
        let (config, model) = model::load_packed_as::<B>(folder, choose, device)?;
        let stored = model.form();
        match self.form() {
            Some(asked) if stored == WeightForm::Float => {
                Ok((config, model.to_form(asked).without_padding()))
            }
            Some(asked) if stored != asked => Err(PrecisionError::Stored {
                folder: folder.into(),
                stored: form_name(stored),
                asked: form_name(asked),
            }),
            _ => Ok((config, model.without_padding())),
        }
    }

    /// The form of the weights of projections, if it differs from that of the other parameters.
    pub(crate) fn form(self) -> Option<WeightForm> {
        match self {
            Self::Int8 => Some(WeightForm::Int8),
            Self::Int4 => Some(WeightForm::Int4),
            Self::Auto | Self::F32 | Self::F16 | Self::Bf16 => None,
        }
    }
}

/// What the parameters of `model` are kept in, as `--dtype` calls it.
pub(crate) fn kept_in<B: KernelBackend>(model: &CausalLm<B>) -> String {
    match model.form() {
        WeightForm::Float => {
            let dtype = model.backbone.embedding.weight.val().dtype();
            format!("{dtype:?}").to_lowercase()
        }
        packed => form_name(packed).to_owned(),
    }
}

/// As `--dtype` calls it.
pub(crate) fn form_name(form: WeightForm) -> &'static str {
    match form {
        WeightForm::Float => "floats",
        WeightForm::Int8 => "int8",
        WeightForm::Int4 => "int4",
    }
}
