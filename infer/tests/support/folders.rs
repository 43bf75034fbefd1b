//! Model folders as a run leaves them, of each of the three kinds.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use kernels::backends::Flex;
use model::{CausalLm, DiscreteMamba2Config, PhiMambaConfig};
use tempfile::TempDir;

/// The bundled teacher's folder.
pub fn teacher() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny")
}

/// A folder with an untrained student of the bundled teacher, which keeps the teacher's attention in
/// `attention_layers`.
pub fn student(attention_layers: &[usize]) -> TempDir {
    let device = Device::<Flex>::default();
    let (teacher_config, teacher_model) = model::load_teacher::<Flex>(teacher(), &device).unwrap();
    let mixer = DiscreteMamba2Config {
        n_v_heads: 3,
        n_qk_heads: 3,
        ..DiscreteMamba2Config::default()
    };
    let config = PhiMambaConfig::student_of(&teacher_config, &mixer, attention_layers).unwrap();
    let mut student = CausalLm::<Flex>::init(&config, 0, &device);
    model::transfer_weights(&mut student, &teacher_model).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model::save_student(&config, &student, folder.path()).unwrap();
    let tokenizer = "tokenizer.json";
    fs::copy(teacher().join(tokenizer), folder.path().join(tokenizer)).unwrap();
    folder
}
