//! Model folders: a model that is read equals the model that was written, and files that do not fit or are damaged give
//! an error that says so.

mod configurations;
mod damage;
mod gguf;
mod llama;
mod manifests;
mod packed;
mod published;
mod round_trips;
mod torch;
#[path = "../support/torch.rs"]
mod torch_file;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{CausalLm, ModelConfig, PhiConfig, PhiMambaConfig, WeightsError, named_parameters};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use tests::goldens_dir;
use tests::networks::{Fast, values};

/// Every tensor of a safetensors file: name, dtype, shape, bytes.
type Contents = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn contents(path: &Path) -> Contents {
    let bytes = fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors = file.tensors().into_iter();
    let mut all: Contents = tensors
        .map(|(name, x)| (name, x.dtype(), x.shape().to_vec(), x.data().to_vec()))
        .collect();
    all.sort();
    all
}

fn write(path: &Path, contents: &Contents) {
    let views = contents.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a view");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a written file");
}

/// A copy of a golden folder's model, to damage.
fn copy_of(case: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(
            goldens_dir().join(case).join(name),
            folder.path().join(name),
        )
        .expect("a copy");
    }
    folder
}

fn load_student(folder: &Path) -> Result<(PhiMambaConfig, CausalLm<Fast>), WeightsError> {
    let (config, model) = model::load_any(folder, &Default::default())?;
    let ModelConfig::PhiMamba(config) = config else {
        panic!("no student: {config:?}")
    };
    Ok((config, model))
}

fn load_teacher(folder: &Path) -> Result<(PhiConfig, CausalLm<Fast>), WeightsError> {
    let (config, model) = model::load_any(folder, &Default::default())?;
    let ModelConfig::Phi(config) = config else {
        panic!("no teacher: {config:?}")
    };
    Ok((config, model))
}

/// Every parameter's name and values.
fn parameters<B: KernelBackend>(model: &CausalLm<B>) -> HashMap<String, tests::Values> {
    struct Collected(Vec<tests::Values>);
    impl<B: KernelBackend> burn::module::ModuleVisitor<B> for Collected {
        fn visit_float<const D: usize>(&mut self, parameter: &burn::module::Param<Tensor<B, D>>) {
            self.0.push(values(parameter.val()));
        }
    }
    let mut found = Collected(Vec::new());
    burn::module::Module::visit(model, &mut found);
    let names = named_parameters(model, PhiMambaConfig::LAYOUT).into_iter();
    names.map(|p| p.name).zip(found.0).collect()
}
