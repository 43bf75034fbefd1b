//! Models to test with: the bundled teacher, and untrained students of it.
#![allow(dead_code, reason = "each test program uses some of these")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use kernels::runtime::Flex;
use model::{
    CausalLm, DiscreteMamba2Config, LlamaConfig, LlamaFamily, PhiMambaConfig, RopeScaling,
};
use tempfile::TempDir;

/// The bundled teacher's folder.
pub fn teacher_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny")
}

/// A student of the bundled teacher before any training: the teacher's embedding, MLPs, norms and head
/// around new mixers. In `attention_layers` the mixers are attention.
pub fn student(attention_layers: &[usize]) -> (PhiMambaConfig, CausalLm<Flex>) {
    let device = Device::<Flex>::default();
    let (teacher_config, teacher) = model::load_any::<Flex>(teacher_folder(), &device).unwrap();
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

/// A folder with such a student, as a run exports it.
pub fn student_folder(attention_layers: &[usize]) -> TempDir {
    let (config, student) = student(attention_layers);
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &student, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// Copies the bundled teacher's tokenizer to a folder.
pub fn copy_tokenizer(folder: &Path) {
    let name = "tokenizer.json";
    fs::copy(teacher_folder().join(name), folder.join(name)).unwrap();
}

/// A small model of each family of Llama's shape, with random weights and the bundled tokenizer, and with what the
/// family has of its own.
pub fn llama_like_folders() -> Vec<(&'static str, TempDir)> {
    let families = [
        ("Llama", LlamaFamily::Llama),
        ("Mistral", LlamaFamily::Mistral),
        ("Qwen2", LlamaFamily::Qwen2),
        ("Qwen3", LlamaFamily::Qwen3),
    ];
    let folders = families.map(|(name, family)| {
        let mut config = LlamaConfig {
            vocab_size: 4096,
            hidden_size: 48,
            intermediate_size: 64,
            num_hidden_layers: 2,
            max_position_embeddings: 256,
            tie_word_embeddings: family != LlamaFamily::Mistral,
            sliding_window: (family == LlamaFamily::Mistral).then_some(16),
            ..LlamaConfig::default_of(family)
        };
        config.attention.n_heads = 4;
        config.attention.n_kv_heads = 2;
        config.attention.head_dim = Some(16);
        if family == LlamaFamily::Llama {
            config.attention.rope_scaling = Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
            });
        }
        let model = CausalLm::<Flex>::init(&config, 3, &Device::<Flex>::default());
        let folder = tempfile::tempdir().unwrap();
        model::save(&config, &model, folder.path()).unwrap();
        copy_tokenizer(folder.path());
        (name, folder)
    });
    folders.into()
}
