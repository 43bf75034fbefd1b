//! A model in the host's memory, to be written later.

use std::borrow::Cow;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, View};

use super::{WeightsError, write};
use crate::arch::{Family, ModelConfig};
use crate::lm::CausalLm;
use crate::manifest::Digests;

/// A model as [`save`](super::save) writes it, with its values in the host's memory: it can be written on another
/// thread, and more than once, while the network that it was read from changes.
#[derive(Debug)]
pub struct HostModel {
    config: ModelConfig,
    tensors: Vec<(String, HostTensor)>,
}

impl HostModel {
    /// Reads all tensors of `model`, which `config` describes, from their device.
    ///
    /// # Panics
    /// If the device fails, as any read of a tensor does.
    pub fn read<B: Backend>(config: &ModelConfig, model: &CausalLm<B>) -> Self {
        let stored = write::stored(model, config.layout(), DType::F32).into_iter();
        let tensors = stored.map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            let bytes = tensor.data().into_owned();
            (name, HostTensor { shape, bytes })
        });
        Self {
            tensors: tensors.collect(),
            config: config.clone(),
        }
    }

    /// Writes it into `folder`, as [`save`](super::save) does, and returns the checksums of the files.
    ///
    /// # Errors
    /// As [`save`](super::save).
    pub fn write(&self, folder: &Path) -> Result<Digests, WeightsError> {
        let tensors = self.tensors.iter();
        let tensors = tensors.map(|(name, tensor)| (name.clone(), tensor));
        let text = self.config.to_json();
        write::folder(tensors.collect(), &self.config, text, folder)
    }
}

/// A tensor in the host's memory, in f32.
#[derive(Debug)]
pub struct HostTensor {
    shape: Vec<usize>,
    /// Little-endian.
    bytes: Vec<u8>,
}

impl From<TensorData> for HostTensor {
    fn from(data: TensorData) -> Self {
        let data = data.convert_dtype(DType::F32);
        Self {
            shape: data.shape.to_vec(),
            bytes: data.bytes.to_vec(),
        }
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burn_flex::Flex;

    use super::*;
    use crate::arch::PhiConfig;
    use crate::mixers::attention::AttentionConfig;

    /// The same files, also when the network is gone and on the second time.
    #[test]
    fn it_writes_what_the_model_writes() {
        let config: ModelConfig = PhiConfig {
            vocab_size: 64,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            attention: AttentionConfig::with_heads(2),
            ..PhiConfig::default()
        }
        .into();
        let model = CausalLm::<Flex>::init(&config, 3, &Default::default());
        let folder = tempfile::tempdir().unwrap();
        let (direct, later) = (folder.path().join("direct"), folder.path().join("later"));
        let expected = super::super::save(&config, &model, &direct).unwrap();
        let host = HostModel::read(&config, &model);
        drop(model);
        for _ in 0..2 {
            assert_eq!(host.write(&later).unwrap(), expected);
            for name in expected.keys() {
                let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
                assert!(read(&later) == read(&direct), "{name}");
            }
        }
    }
}
