//! The configurations of the published sizes, without weights: parameters are initialised when they are first read, and
//! counting them only reads their shapes.

use model::{Mixer, PhiConfig, PhiMamba, PhiMambaConfig, named_parameters};
use train::run::student_config;

use super::*;

/// What `microsoft/phi-1_5` says of itself, as far as it is read.
const PHI_1_5: &str = r#"{
  "architectures": ["PhiForCausalLM"],
  "model_type": "phi",
  "vocab_size": 51200,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 24,
  "num_attention_heads": 32,
  "num_key_value_heads": null,
  "hidden_act": "gelu_new",
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048,
  "partial_rotary_factor": 0.5,
  "qk_layernorm": false,
  "rope_scaling": null,
  "rope_theta": 10000.0,
  "tie_word_embeddings": false,
  "torch_dtype": "float16"
}"#;

/// The parameters of the student of Phi-1.5 by `preset`, and how many of its layers keep
/// attention.
fn count(preset: &str) -> (usize, usize) {
    let config = Config::load(Source::Preset(preset), &[]).expect("a valid preset");
    let teacher = PhiConfig::from_json(PHI_1_5).expect("a teacher's configuration");
    let student = student_config(&config, &teacher).expect("a student that fits");
    let student = PhiMamba::<Inner>::init(&student, config.seed, &Default::default());
    let layers = &student.backbone.layers;
    let is_attention = |layer: &&model::Block<_>| matches!(layer.mixer, Mixer::Attention(_));
    let attention = layers.iter().filter(is_attention).count();
    let parameters = named_parameters(&student, PhiMambaConfig::LAYOUT);
    let parameters = parameters.iter().map(|p| p.shape.iter().product::<usize>());
    (parameters.sum(), attention)
}

#[test]
fn the_published_students_have_their_published_sizes() {
    assert_eq!(count("phi-1.5"), (1_521_097_472, 0));
    assert_eq!(count("hybrid-phi-1.5"), (1_503_959_680, 4));
}

/// What `HuggingFaceTB/SmolLM2-135M-Instruct` says of itself, as far as it is read.
const SMOLLM2: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 49152,
  "hidden_size": 576,
  "intermediate_size": 1536,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-05,
  "rope_theta": 100000,
  "tie_word_embeddings": true
}"#;

/// A calibrated student has the teacher's parameters but for its attention, a mixer in the place of each, and the
/// gate's and the decay's biases: those of the measured one, with a bias of A_log.
#[test]
fn a_students_size_is_that_of_the_measured_one() {
    let size = |preset: &str| {
        let config = Config::load(Source::Preset(preset), &[]).expect("a valid preset");
        let teacher = model::ModelConfig::from_json(SMOLLM2).expect("a teacher's configuration");
        let student = student_config(&config, &teacher).expect("a student that fits");
        let student = PhiMamba::<Inner>::init(&student, config.seed, &Default::default());
        let parameters = named_parameters(&student, model::Layout::default());
        let sizes = parameters.iter().map(|p| p.shape.iter().product::<usize>());
        sizes.sum::<usize>()
    };
    // x, B, C and z, A_log, the output; the convolution; the biases of z, of A_log, and D.
    let mixer = 576 * (4 * 576 + 9 + 576) + 5 * 3 * 576 + 576 + 9 + 9;
    let attention = 576 * (576 + 2 * 192 + 576);
    let rest = 576 * (49152 + 1) + 30 * (3 * 576 * 1536 + 2 * 576);
    assert_eq!(size("smollm2-135m"), rest + 30 * mixer);
    assert_eq!(rest + 30 * mixer, 158_171_868);
    assert_eq!(
        size("smollm2-135m-hybrid"),
        rest + 25 * mixer + 5 * attention
    );
}
