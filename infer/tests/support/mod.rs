//! Models to generate with: the bundled teacher, and students made of it.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use kernels::backends::Flex;
use model::{CausalLm, DiscreteMamba2Config, PhiMambaConfig};

/// The bundled teacher's folder.
pub fn teacher_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny")
}

/// A student of the bundled teacher before any training: the teacher's embedding, MLPs, norms and
/// head around fresh mixers.
#[allow(dead_code, reason = "not every test program needs one")]
pub fn untrained_student() -> (PhiMambaConfig, CausalLm<Flex>) {
    student(&[])
}

/// The same with attention, as fresh as the mixers, in some layers.
pub fn student(attention_layers: &[usize]) -> (PhiMambaConfig, CausalLm<Flex>) {
    let device = Device::<Flex>::default();
    let (teacher_config, teacher) = model::load_teacher::<Flex>(teacher_folder(), &device).unwrap();
    let mixer = DiscreteMamba2Config {
        n_v_heads: 3,
        n_qk_heads: 3,
        ..DiscreteMamba2Config::default()
    };
    let config = PhiMambaConfig::student_of(&teacher_config, &mixer, attention_layers).unwrap();
    let mut student = CausalLm::init(&config, 0, &device);
    model::transfer_weights(&mut student, &teacher).unwrap();
    (config, student)
}
