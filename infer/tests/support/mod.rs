//! Models to test with: the bundled teacher, and untrained students of it.
#![allow(dead_code, reason = "each test program uses some of these")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use kernels::runtime::Flex;
use model::{CausalLm, DiscreteMamba2Config, PhiMambaConfig};
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

/// A chat template for the bundled tokenizer, whose one special token stands before each turn.
pub const CHAT_TEMPLATE: &str = "\
{%- for message in messages %}
    {%- if message.content == 'refuse' %}
        {{- raise_exception('This is refused.') }}
    {%- endif %}
    {{- eos_token + message.role + '\\n' + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- eos_token + 'assistant\\n' }}
{%- endif %}
";

/// A copy of a model's folder that has a chat template.
pub fn chat_folder(model: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let tokens = r#"{"eos_token": "<|endoftext|>"}"#;
    fs::write(folder.path().join("tokenizer_config.json"), tokens).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), CHAT_TEMPLATE).unwrap();
    folder
}
