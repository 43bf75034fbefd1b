//! Logits and greedy ids of students, for `tests/python` to compare with those of the module of Python beside them.
//!
//! `cargo run -p model --example students_for_python -- FOLDER [STUDENT...]` writes a folder for each student of this
//! file, with an `expected.safetensors` as in the recorded students; these students have options that no recorded one
//! has. For each STUDENT, which is a folder of a student, it also writes `FOLDER/0.safetensors`, `FOLDER/1.safetensors`
//! and so on.

use std::error::Error;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use kernels::Window;
use model::{
    AttentionConfig, BesideAttentionConfig, CausalLm, DiscreteMamba2Config, Family, FeatureMap,
    Joined, LlamaConfig, LlamaFamily, MixerConfig, MixerRotary, ModelConfig, PhiConfig, Turned,
};
use safetensors::tensor::{Dtype, TensorView};

/// Sequences and tokens: more than the module of Python has in a chunk.
const SHAPE: [usize; 2] = [2, 70];
/// Tokens of a prompt, and those that are made after it.
const PROMPT: usize = 5;
const MADE: usize = 16;

const D_MODEL: usize = 48;
const HEADS: usize = 4;

fn teacher(family: LlamaFamily) -> LlamaConfig {
    let mut config = LlamaConfig {
        vocab_size: 96,
        hidden_size: D_MODEL,
        intermediate_size: 64,
        num_hidden_layers: 2,
        ..LlamaConfig::default_of(family)
    };
    config.attention.n_heads = HEADS;
    config.attention.n_kv_heads = 2;
    config.attention.head_dim = Some(12);
    config
}

/// The students by name.
fn students() -> Result<Vec<(&'static str, ModelConfig)>, Box<dyn Error>> {
    let plain = DiscreteMamba2Config {
        d_state: 12,
        chunk_size: 16,
        rotary: Some(MixerRotary {
            theta: 10000.0,
            scaling: None,
            dim: 12,
            turned: Turned::BAndC,
        }),
        ..DiscreteMamba2Config::with_heads(HEADS)
    };
    let mapped = |feature_map, bc_norm| DiscreteMamba2Config {
        feature_map,
        bc_norm,
        ..plain.clone()
    };
    let twice = |mixer: DiscreteMamba2Config| vec![MixerConfig::from(mixer); 2];
    let (llama, qwen3) = (teacher(LlamaFamily::Llama), teacher(LlamaFamily::Qwen3));
    let phi = PhiConfig {
        vocab_size: 96,
        hidden_size: D_MODEL,
        intermediate_size: 64,
        num_hidden_layers: 2,
        attention: AttentionConfig::with_heads(HEADS),
        ..PhiConfig::default()
    };

    let normed = mapped(FeatureMap::Identity, Some(1e-5));
    let window = Window {
        window: 6,
        sinks: 2,
    };
    let beside = BesideAttentionConfig {
        ssm: DiscreteMamba2Config {
            a_log_bias: true,
            ..plain.clone()
        },
        attention: Some(AttentionConfig {
            window: Some(window),
            ..llama.attention.clone()
        }),
        heads: vec![],
        joined: Joined::Sum,
    };
    // The second layer keeps none.
    let heads = |kept: &[usize], joined| BesideAttentionConfig {
        ssm: plain.clone(),
        attention: (!kept.is_empty()).then(|| AttentionConfig {
            n_heads: kept.len(),
            n_kv_heads: 1,
            ..llama.attention.clone()
        }),
        heads: kept.to_vec(),
        joined,
    };
    let with_heads = |joined| vec![heads(&[2, 3], joined).into(), heads(&[], joined).into()];
    let kept = MixerConfig::from(qwen3.attention.clone());
    let exp = mapped(FeatureMap::Exp, None);
    let softmax = mapped(FeatureMap::Softmax, Some(1e-5));
    Ok(vec![
        ("bc-norm", llama.student_with(twice(normed.clone()))?),
        (
            "bc-norm-and-head-norms",
            qwen3.student_with(vec![normed.into(), kept])?,
        ),
        ("exp", llama.student_with(twice(exp))?),
        ("softmax", llama.student_with(twice(softmax.clone()))?),
        ("window", llama.student_with(vec![beside.into(); 2])?),
        ("heads-sum", llama.student_with(with_heads(Joined::Sum))?),
        (
            "heads-adapter",
            llama.student_with(with_heads(Joined::Adapter))?,
        ),
        ("phi-softmax", phi.student_with(twice(softmax))?),
    ])
}

/// Parameters far from their initial zeros and ones, so that each of them matters.
struct Noise(u64);

impl ModuleMapper<Flex> for Noise {
    fn map_float<const D: usize>(
        &mut self,
        parameter: Param<Tensor<Flex, D>>,
    ) -> Param<Tensor<Flex, D>> {
        self.0 += 1;
        let seed = self.0;
        parameter.map(|x| {
            let (shape, noise) = tests::random(seed, &x.dims(), 0.25);
            x.clone() + Tensor::from_data(TensorData::new(noise, shape), &x.device())
        })
    }
}

/// Writes the logits of some ids to `file`, and what follows their beginnings.
fn write(network: &CausalLm<Flex>, file: &Path) -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    let [b, l] = SHAPE;
    let [vocabulary, _] = network.backbone.embedding.weight.dims();
    let ids: Vec<i64> = (0..b * l)
        .map(|i| (37 * i * i + 11 * i) % vocabulary)
        .map(|id| id as i64)
        .collect();
    let ids_bl: Tensor<Flex, 2, Int> =
        Tensor::from_data(TensorData::new(ids.clone(), SHAPE), &device);
    let logits_blv = network.logits(network.features(ids_bl.clone()));

    let mut all = ids_bl.narrow(1, 0, PROMPT);
    let mut state = network.new_state(b, &device);
    let mut logits_bv = network.prefill(all.clone(), &mut state);
    for _ in 0..MADE {
        let next: Tensor<Flex, 1, Int> = logits_bv.argmax(1).reshape([b]);
        all = Tensor::cat(vec![all, next.clone().reshape([b, 1])], 1);
        logits_bv = network.step(next, &mut state);
    }
    let greedy: Vec<i64> = all.into_data().iter::<i64>().collect();

    let bytes_of = |ids: &[i64]| ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let logits = logits_blv.into_data();
    let logits = logits.iter::<f32>().flat_map(f32::to_le_bytes).collect();
    let tensors: [(&str, Dtype, Vec<usize>, Vec<u8>); 3] = [
        ("input_ids", Dtype::I64, vec![b, l], bytes_of(&ids)),
        ("logits", Dtype::F32, vec![b, l, vocabulary], logits),
        (
            "greedy_ids",
            Dtype::I64,
            vec![b, PROMPT + MADE],
            bytes_of(&greedy),
        ),
    ];
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    Ok(safetensors::serialize_to_file(views, None, file)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().ok_or("a folder to write to is missing")?;
    for (name, config) in students()? {
        let network = CausalLm::<Flex>::init(&config, 7, &Default::default()).map(&mut Noise(5));
        let student = folder.join(name);
        model::save(&config, &network, &student)?;
        write(&network, &student.join("expected.safetensors"))?;
        println!("{}", student.display());
    }
    for (i, student) in arguments.enumerate() {
        let (_, network) = model::load_any::<Flex>(&student, &Default::default())?;
        write(&network, &folder.join(format!("{i}.safetensors")))?;
    }
    Ok(())
}
