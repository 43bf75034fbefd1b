//! `config.json` of goombalab/mohawk's own checkpoints: the components of a `LayeredMambaLM`, as its YAML files have
//! them, alone or beside the other options of a run.
//!
//! What the published code computes is read, also where its file says something else: attention has the model's
//! rotary positions and not its layer's, a layer with two mixers has norms with an epsilon of 1e-5, and what a class
//! takes and does not use is not looked at.

use serde_json::{Value, json};

use super::{LlamaMambaConfig, Rope, llamas_network};
use crate::arch::HeadConfig;
use crate::arch::keys::Keys;
use crate::config_error::{ConfigError, check_layers, check_sizes};
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::beside_attention::{BesideAttentionConfig, Joined};
use crate::mixers::discrete_mamba2::{Activation, DiscreteMamba2Config, MixerRotary, Turned};

/// What the published code has fixed in the norms of a layer with two mixers.
const EPSILON_OF_TWO: f64 = 1e-5;
/// Heads where a file does not say how many: transformers' default.
const DEFAULT_HEADS: usize = 32;
/// The base of rotary positions where a file does not say it: transformers' default.
const DEFAULT_THETA: f64 = 10000.0;

/// The components in a file, if it has such.
pub(super) fn components(root: &Value) -> Option<&Value> {
    let alone = || root.get("MixerModel").map(|_| root);
    root.get("ComponentsConfig").or_else(alone)
}

/// The sizes of a model that its mixers need.
struct Sizes {
    d_model: usize,
    rope: Rope,
}

/// Reads the components, whose sizes are not checked yet.
pub(super) fn read(components: &Value) -> Result<LlamaMambaConfig, ConfigError> {
    let file = Keys::of("", components)?;
    file.one_of("name", &["LayeredMambaLM"])?;
    let (vocab_size, padded, head) = read_ends(&file.object("input")?)?;
    let backbone = file.object("MixerModel")?;
    let family = match backbone.one_of("name", &["LlamaModel", "Qwen2Model"])? {
        "Qwen2Model" => "qwen2",
        _ => "llama",
    };
    let input = backbone.object("input")?;
    let d_model: usize = input.required("d_model")?;
    let epsilon: f64 = input.required("norm_epsilon")?;
    let head_dim = match input.read("head_dim")? {
        Some(head_dim) => head_dim,
        None => {
            let heads = input.read("num_attention_heads")?;
            per_head(d_model, heads.unwrap_or(DEFAULT_HEADS))
        }
    };
    let rope = Rope {
        theta: input.read("rope_theta")?.unwrap_or(DEFAULT_THETA),
        head_dim,
        scaling: input.read("rope_scaling")?,
    };
    let sizes = Sizes { d_model, rope };

    let blocks: Vec<Value> = backbone.required("Blocks")?;
    let mut mixers = Vec::new();
    let mut width = None;
    for (i, block) in blocks.iter().enumerate() {
        let block = Keys::of(format!("MixerModel.Blocks[{i}]."), block)?;
        let input = block.object("input")?;
        input.one_of("mlp_act_fn", &["silu"])?;
        let hidden: usize = input.required("mlp_intermediate_size")?;
        let first = *width.get_or_insert(hidden);
        input.only("mlp_intermediate_size", &json!(first))?;
        let (mixer, own_epsilon) = read_block(&block, &sizes)?;
        if own_epsilon != epsilon {
            return Err(input.unsupported(
                "norm_epsilon",
                &json!(own_epsilon),
                &format!("{epsilon}, as everywhere"),
            ));
        }
        let n: usize = block.required("n_layers")?;
        check_layers("MixerModel.input.n_layer", mixers.len().saturating_add(n))?;
        mixers.extend(std::iter::repeat_n(mixer, n));
    }
    let n_layer: usize = input.required("n_layer")?;
    if n_layer != mixers.len() {
        return Err(ConfigError::Invalid(format!(
            "`MixerModel.input.n_layer` is {n_layer}, but `MixerModel.Blocks` has {} layers",
            mixers.len()
        )));
    }
    Ok(LlamaMambaConfig {
        family: family.into(),
        vocab_size,
        rope,
        network: llamas_network(
            padded,
            d_model,
            epsilon,
            (width.unwrap_or(0), false),
            head,
            mixers,
        ),
    })
}

/// The vocabulary, its size with padding, and the head, of a file with these keys.
pub(super) fn read_ends(input: &Keys) -> Result<(usize, usize, HeadConfig), ConfigError> {
    let vocab_size: usize = input.required("vocab_size")?;
    let multiple: usize = input.required("pad_vocab_size_multiple")?;
    check_sizes(&[
        ("vocab_size", vocab_size),
        ("pad_vocab_size_multiple", multiple),
    ])?;
    let head = if input.required("tie_embeddings")? {
        HeadConfig::Tied
    } else {
        let bias = input.read("lm_head_bias")?.unwrap_or(false);
        HeadConfig::Own { bias }
    };
    Ok((vocab_size, vocab_size.next_multiple_of(multiple), head))
}

/// `width` divided among `heads`; 0, which no mixer accepts, where there are none.
fn per_head(width: usize, heads: usize) -> usize {
    width.checked_div(heads).unwrap_or(0)
}

/// The mixer of a block's layers, and the epsilon of their norms.
fn read_block(block: &Keys, sizes: &Sizes) -> Result<(MixerConfig, f64), ConfigError> {
    const NAMES: [&str; 4] = [
        "LlamaBlock",
        "Qwen2Block",
        "DoubleBlockAdapter",
        "DoubleBlockVanilla",
    ];
    let joined = match block.one_of("name", &NAMES)? {
        "DoubleBlockAdapter" => Joined::Adapter,
        "DoubleBlockVanilla" => Joined::Sum,
        _ => {
            let epsilon = block.object("input")?.required("norm_epsilon")?;
            return Ok((read_layer(&block.object("Layer")?, sizes)?, epsilon));
        }
    };
    let ssm = block.object("ssm_layer")?;
    ssm.one_of("name", &["DiscreteMamba2"])?;
    let ssm = ssm.object("input")?;
    let head_dim = ssm.required("headdim")?;
    let attention = block.object("attn_layer")?;
    let kept: usize = attention.object("input")?.required("num_attention_heads")?;
    let attention = match kept {
        0 => None,
        _ => Some(read_attention(&attention, sizes)?),
    };
    let both = BesideAttentionConfig {
        ssm: read_ssm(&ssm, head_dim)?,
        attention,
        heads: Vec::new(),
        joined,
    };
    Ok((both.into(), EPSILON_OF_TWO))
}

/// The mixer of a layer with one.
fn read_layer(layer: &Keys, sizes: &Sizes) -> Result<MixerConfig, ConfigError> {
    const NAMES: [&str; 4] = [
        "DiscreteMamba2",
        "DiscreteMamba2Rotary",
        "LlamaAttention",
        "Qwen2Attention",
    ];
    let input = layer.object("input")?;
    match layer.one_of("name", &NAMES)? {
        "DiscreteMamba2" => {
            let heads = input.read("n_v_heads")?.unwrap_or(DEFAULT_HEADS);
            let width = input.read("d_inner")?.unwrap_or(sizes.d_model);
            Ok(read_ssm(&input, per_head(width, heads))?.into())
        }
        "DiscreteMamba2Rotary" => Ok(read_rotary_ssm(&input, sizes)?.into()),
        _ => Ok(read_attention(layer, sizes)?.into()),
    }
}

/// A state-space mixer with heads of `head_dim`.
fn read_ssm(input: &Keys, head_dim: usize) -> Result<DiscreteMamba2Config, ConfigError> {
    input.one_of("norm_cls", &["none", "identity"])?;
    const ACTIVATIONS: [&str; 6] = ["identity", "id", "linear", "none", "silu", "swish"];
    let activation = match input.one_of("activation", &ACTIVATIONS)? {
        "silu" | "swish" => Activation::Silu,
        _ => Activation::Identity,
    };
    // The published gate has a bias of its own where it begins as the identity.
    let gate = input.object("initializer")?;
    let gate = gate.one_of("z", &["default", "identity"])?;
    let n_v_heads = input.read("n_v_heads")?.unwrap_or(DEFAULT_HEADS);
    let default = DiscreteMamba2Config::default();
    Ok(DiscreteMamba2Config {
        d_state: input.read("d_state")?.unwrap_or(default.d_state),
        n_v_heads,
        head_dim: Some(head_dim),
        n_qk_heads: input.read("n_qk_heads")?.unwrap_or(n_v_heads),
        d_conv: input.read("d_conv")?.unwrap_or(default.d_conv),
        conv_bias: input.read("conv_bias")?.unwrap_or(true),
        chunk_size: input.read("chunk_size")?.unwrap_or(default.chunk_size),
        activation,
        bias: input.read("bias")?.unwrap_or(false),
        z_bias: gate == "identity",
        ..default
    })
}

/// A state-space mixer with rotary positions of x and B, over whole heads.
fn read_rotary_ssm(input: &Keys, sizes: &Sizes) -> Result<DiscreteMamba2Config, ConfigError> {
    // The published class does not apply it, depending on the version of transformers.
    input.only("rope_scaling", &Value::Null)?;
    let expand: usize = input.read("expand")?.unwrap_or(1);
    let width = expand.saturating_mul(sizes.d_model);
    let heads = input.read("n_v_heads")?.unwrap_or(DEFAULT_HEADS);
    let plain = read_ssm(input, per_head(width, heads))?;
    let dim = match input.read("head_dim")? {
        Some(dim) => dim,
        None => per_head(
            input.required("hidden_size")?,
            input.required("num_attention_heads")?,
        ),
    };
    Ok(DiscreteMamba2Config {
        n_qk_heads: input.read("n_qk_heads")?.unwrap_or(DEFAULT_HEADS),
        z_bias: plain.z_bias || !plain.bias,
        rotary: Some(MixerRotary {
            theta: input.required("rope_theta")?,
            scaling: None,
            dim,
            turned: Turned::XAndB,
        }),
        ..plain
    })
}

/// Attention, which has the model's rotary positions.
fn read_attention(layer: &Keys, sizes: &Sizes) -> Result<AttentionConfig, ConfigError> {
    let is_qwen2 = layer.one_of("name", &["LlamaAttention", "Qwen2Attention"])? == "Qwen2Attention";
    let input = layer.object("input")?;
    input.only("use_sliding_window", &json!(false))?;
    let n_heads: usize = input.required("num_attention_heads")?;
    let n_kv_heads = if is_qwen2 {
        input.required("num_key_value_heads")?
    } else {
        input.read("num_key_value_heads")?.unwrap_or(n_heads)
    };
    let head_dim = input.read("head_dim")?;
    let head_dim = head_dim.unwrap_or(per_head(sizes.d_model, n_heads));
    if head_dim != sizes.rope.head_dim {
        return Err(ConfigError::Invalid(format!(
            "`{}input.head_dim` is {head_dim}, and the model's rotary positions are for heads of {}",
            layer.path, sizes.rope.head_dim
        )));
    }
    let bias = input.read("attention_bias")?.unwrap_or(false);
    Ok(AttentionConfig {
        n_kv_heads,
        head_dim: Some(head_dim),
        qkv_bias: is_qwen2 || bias,
        dense_bias: !is_qwen2 && bias,
        partial_rotary_factor: 1.0,
        rope_theta: sizes.rope.theta,
        rope_scaling: sizes.rope.scaling,
        ..AttentionConfig::with_heads(n_heads)
    })
}
