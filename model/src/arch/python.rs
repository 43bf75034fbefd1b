//! A Python module that opens students in Hugging Face's transformers, without this project. It is written beside the
//! weights of a student and named in its `config.json`.

use serde_json::{Value, json};

/// A file of Python that opens models of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PythonModule {
    /// The file's name.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// For all students: it reads the formats of all of them.
pub(super) const STUDENTS: PythonModule = PythonModule {
    file: "modeling_mohawk.py",
    text: include_str!("modeling_mohawk.py"),
};

/// Adds to a student's `config.json` what leads `AutoModelForCausalLM.from_pretrained` to [`STUDENTS`].
pub(super) fn name_module(root: &mut Value) {
    root["architectures"] = json!(["MohawkForCausalLM"]);
    root["model_type"] = json!("mohawk_student");
    // In this module, a tied head is not a separate module, so there is nothing to tie.
    root["tie_word_embeddings"] = json!(false);
    root["auto_map"] = json!({
        "AutoConfig": "modeling_mohawk.MohawkConfig",
        "AutoModelForCausalLM": "modeling_mohawk.MohawkForCausalLM",
    });
}
