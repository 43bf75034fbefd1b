//! Weights in 8 and 4 bits: the written weights are those of the computation, and files that do not fit give an error
//! that says so.

use std::fs;
use std::path::Path;

use burn::tensor::{DType, Int, Tensor};
use model::{DiscreteMamba2Config, Family, LlamaConfig, LlamaFamily, WeightForm};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A teacher whose head is the embedding, and a student of Phi with a head of its own, whose rows of 40 are no whole
/// groups of 4 bits.
fn networks() -> Vec<ModelConfig> {
    let mut llama = LlamaConfig::default_of(LlamaFamily::Llama);
    llama.vocab_size = 48;
    llama.hidden_size = 64;
    llama.intermediate_size = 96;
    llama.num_hidden_layers = 2;
    llama.attention.n_heads = 2;
    llama.attention.n_kv_heads = 1;
    llama.tie_word_embeddings = true;
    let mut phi = PhiConfig {
        vocab_size: 40,
        hidden_size: 40,
        intermediate_size: 64,
        num_hidden_layers: 2,
        ..PhiConfig::default()
    };
    phi.attention.n_heads = 2;
    phi.attention.n_kv_heads = 2;
    let mixer = DiscreteMamba2Config {
        n_v_heads: 2,
        n_qk_heads: 2,
        d_state: 4,
        ..DiscreteMamba2Config::default()
    };
    let student = PhiMambaConfig::student_of(&phi, &mixer, &[1]).unwrap();
    vec![llama.into(), student.into()]
}

/// A model in `form`, and its folder.
fn written(config: &ModelConfig, form: WeightForm, dtype: DType) -> (CausalLm<Fast>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    // As it would be read from a file in that dtype.
    let model = CausalLm::<Fast>::init(config, 3, &Default::default());
    let model = model.cast(dtype).cast(DType::F32).to_form(form);
    let mut text: Value = serde_json::from_str(&config.to_json()).unwrap();
    text["eos_token_id"] = json!(7);
    let text = text.to_string();
    model::save_packed((config, &text), &model, dtype, folder.path()).unwrap();
    (model, folder)
}

fn load(folder: &Path) -> Result<(ModelConfig, CausalLm<Fast>), WeightsError> {
    model::load_packed_as(folder, |_| DType::F32, &Default::default())
}

/// The logits of a prompt and of a step after it.
fn logits(model: &CausalLm<Fast>) -> Vec<f32> {
    let device = Default::default();
    let ids = |ids: &[i32]| Tensor::<Fast, 1, Int>::from_ints(ids, &device);
    let mut state = model.new_state(1, &device);
    let prompt = ids(&[5, 1, 2, 3, 4, 9, 8, 7, 6, 5]).reshape([1, 10]);
    let first = model.prefill(prompt, &mut state);
    let both = Tensor::cat(vec![first, model.step(ids(&[3]), &mut state)], 0);
    both.into_data().to_vec().unwrap()
}

#[test]
fn packed_models_are_read_as_they_were() {
    for config in networks() {
        for (form, dtype) in [
            (WeightForm::Int4, DType::F32),
            (WeightForm::Int4, DType::F16),
            (WeightForm::Int8, DType::BF16),
        ] {
            let name = format!("{} in {form:?} and {dtype:?}", config.name());
            let (model, folder) = written(&config, form, dtype);
            let (again, read) = load(folder.path()).unwrap();
            assert_eq!(again, config, "{name}");
            assert_eq!((read.form(), model.form()), (form, form), "{name}");
            let expected = logits(&model);
            assert!(expected.iter().all(|logit| logit.is_finite()), "{name}");
            assert_eq!(logits(&read), expected, "{name}");
            // The same files again.
            let copy = tempfile::tempdir().unwrap();
            let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
            model::save_packed((&config, &text), &read, dtype, copy.path()).unwrap();
            for file in ["config.json", "model.safetensors"] {
                let read = |folder: &TempDir| fs::read(folder.path().join(file)).unwrap();
                assert!(read(&copy) == read(&folder), "{name}: {file}");
            }
            let text: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(text["eos_token_id"], 7);
            assert_eq!(text["quantization_config"]["format"], "pack-quantized");
            // What is not in bits is in the dtype.
            let all = contents(&folder.path().join("model.safetensors"));
            let embedding = all.iter().find(|(name, ..)| name.contains("embed"));
            let bits =
                embedding.unwrap().3.len() * 8 / (embedding.unwrap().2.iter().product::<usize>());
            assert_eq!(bits, dtype.size() * 8, "{name}");
            assert_eq!(model::stored_dtype(folder.path()).unwrap(), dtype, "{name}");
        }
    }
}

/// For those that compute with floats, such as a trainer, a weight has the numbers that the bits stand for.
#[test]
fn packed_models_are_read_as_floats() {
    for config in networks() {
        for form in [WeightForm::Int4, WeightForm::Int8] {
            let (packed, folder) = written(&config, form, DType::F32);
            let (_, floats) = model::load_any::<Fast>(folder.path(), &Default::default()).unwrap();
            assert_eq!(floats.form(), WeightForm::Float);
            let features = |model: &CausalLm<Fast>| {
                let ids = Tensor::<Fast, 1, Int>::from_ints(
                    [1, 2, 3, 4, 5, 6, 7, 8, 9],
                    &Default::default(),
                );
                values(model.features(ids.reshape([1, 9])))
            };
            // The same numbers, whose products may be summed in another order.
            tests::assert_close(config.name(), features(&floats), features(&packed), 1e-5);
            // Every parameter is described, in its own shape.
            let (_, described) = model::describe(folder.path()).unwrap();
            let parameters = named_parameters(&floats, config.layout());
            assert_eq!(described.len(), parameters.len());
            for parameter in parameters {
                let found = described
                    .iter()
                    .find(|tensor| tensor.name == parameter.name);
                assert_eq!(found.unwrap().shape, parameter.shape, "{}", parameter.name);
            }
            assert!(
                described
                    .iter()
                    .any(|tensor| tensor.stored_as.starts_with("int"))
            );
        }
    }
}

/// Each change of the files is refused in words that name the tensor.
#[test]
fn packed_files_that_do_not_fit_are_refused() {
    type Change = fn(&mut Contents);
    fn of<'a>(all: &'a mut Contents, end: &str) -> &'a mut (String, Dtype, Vec<usize>, Vec<u8>) {
        let name = format!("model.layers.1.mlp.down_proj.weight{end}");
        all.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }
    let changes: [(Change, &str); 9] = [
        (
            |all| of(all, "_scale").0 = "other".into(),
            "weight_scale` is missing; it should be [64, 3]",
        ),
        (
            |all| of(all, "_shape").0 = "other".into(),
            "weight_shape` is missing",
        ),
        (
            |all| of(all, "_packed").0 = "other".into(),
            "down_proj.weight` is missing",
        ),
        // As if a group had 16 numbers.
        (
            |all| {
                let scale = of(all, "_scale");
                scale.2 = vec![64, 6];
                scale.3.extend(scale.3.clone());
            },
            "weight_scale` is [64, 6]; it should be [64, 3]",
        ),
        (
            |all| of(all, "_scale").1 = Dtype::BF16,
            "weight_scale` holds bf16; it should hold f16",
        ),
        (
            |all| of(all, "_packed").2 = vec![32, 24],
            "weight_packed` is [32, 24]; it should be [64, 12]",
        ),
        (
            |all| of(all, "_shape").3[8] = 95,
            "weight_packed` is [64, 12]",
        ),
        (
            |all| {
                let scale = &mut of(all, "_scale").3;
                let n = scale.len();
                scale[n - 2..].copy_from_slice(&0x7e00_u16.to_le_bytes());
            },
            "1 of 192 numbers are NaN or infinite in F16",
        ),
        (
            |all| {
                let name = "model.layers.1.mlp.down_proj.weight".to_owned();
                all.push((name, Dtype::F32, vec![64, 96], vec![0; 4 * 64 * 96]));
            },
            "weight_packed`, [64, 12], belongs to no part of the network",
        ),
    ];
    let (_, folder) = written(&networks()[0], WeightForm::Int4, DType::F32);
    fs::remove_file(folder.path().join("SHA256SUMS")).unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = contents(&path);
    for (change, expected) in changes {
        let mut all = whole.clone();
        change(&mut all);
        write(&path, &all);
        let error = load(folder.path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("down_proj.weight"), "{error}");
        model::load_any::<Fast>(folder.path(), &Default::default()).expect_err(expected);
    }
    write(&path, &whole);
    load(folder.path()).unwrap();
}

/// What is in bits in another way is refused by key and value.
#[test]
fn other_ways_to_quantise_are_refused() {
    let (_, folder) = written(&networks()[0], WeightForm::Int4, DType::F32);
    fs::remove_file(folder.path().join("SHA256SUMS")).unwrap();
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    for (pointer, value, expected) in [
        (
            "/quant_method",
            json!("gptq"),
            "quantization_config.quant_method",
        ),
        ("/format", json!("marlin-24"), "quantization_config.format"),
        (
            "/config_groups/group_0/weights/group_size",
            json!(128),
            "group_size",
        ),
        (
            "/config_groups/group_0/weights/num_bits",
            json!(3),
            "num_bits",
        ),
        (
            "/config_groups/group_0/weights/symmetric",
            json!(false),
            "symmetric",
        ),
    ] {
        let mut root: Value = serde_json::from_str(&text).unwrap();
        let place = root["quantization_config"].pointer_mut(pointer).unwrap();
        *place = value.clone();
        fs::write(&path, root.to_string()).unwrap();
        let error = load(folder.path()).expect_err(expected).to_string();
        assert!(
            error.contains(expected) && error.contains(&value.to_string()),
            "{error}"
        );
    }
}
