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

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::STUDENTS;
    use crate::arch::{Family, LlamaConfig, LlamaFamily};
    use crate::mixers::MixerConfig;
    use crate::mixers::attention::AttentionConfig;
    use crate::mixers::beside_attention::{BesideAttentionConfig, Joined};
    use crate::mixers::discrete_mamba2::DiscreteMamba2Config;

    /// The words in quotes of the set `name` of the module.
    fn known(name: &str) -> Vec<&'static str> {
        let (_, set) = STUDENTS.text.split_once(&format!("{name} = {{")).unwrap();
        let (set, _) = set.split_once('}').unwrap();
        set.split('"').skip(1).step_by(2).collect()
    }

    /// The module refuses the keys that it does not know.
    #[test]
    fn the_module_knows_the_keys_of_a_layer_with_kept_heads() {
        let teacher = LlamaConfig {
            num_hidden_layers: 2,
            ..LlamaConfig::default_of(LlamaFamily::Qwen3)
        };
        let mixer = |joined| {
            MixerConfig::from(BesideAttentionConfig {
                ssm: DiscreteMamba2Config::with_heads(32),
                attention: Some(AttentionConfig {
                    n_heads: 2,
                    n_kv_heads: 1,
                    ..teacher.attention.clone()
                }),
                heads: vec![1, 3],
                joined,
            })
        };
        let mixers = vec![mixer(Joined::Sum), mixer(Joined::Adapter)];
        let config = teacher.student_with(mixers).unwrap().to_json();
        let config: Map<String, Value> = serde_json::from_str(&config).unwrap();
        for layer in config["layers"].as_array().unwrap() {
            assert!(known("KINDS").contains(&layer["kind"].as_str().unwrap()));
            for (part, keys) in [("ssm", "SSM_KEYS"), ("attention", "ATTENTION_KEYS")] {
                let members = layer[part].as_object().unwrap();
                for key in members.keys() {
                    assert!(known(keys).contains(&key.as_str()), "{part}: {key}");
                }
            }
        }
        assert!(config["layers"][0]["attention"]["heads"].is_array());
    }
}
