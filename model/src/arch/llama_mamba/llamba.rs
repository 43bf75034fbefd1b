//! `config.json` of Llamba (arXiv 2502.14458), Llama's published students: pure, with the tensors of goombalab/mohawk.

use serde_json::{Value, json};

use super::{LlamaMambaConfig, Rope, llamas_network, mohawk};
use crate::arch::keys::Keys;
use crate::config_error::{ConfigError, check_layers};
use crate::mixers::discrete_mamba2::{Activation, DiscreteMamba2Config};

/// What the published code has fixed in its blocks, whatever a file says.
const EPSILON: f64 = 1e-5;

/// Whether a file is one.
pub(super) fn is_one(root: &Value) -> bool {
    root.get("model_type").is_some_and(|name| name == "llamba")
}

/// Reads a file, whose sizes are not checked yet.
pub(super) fn read(root: &Value) -> Result<LlamaMambaConfig, ConfigError> {
    let file = Keys::of("", root)?;
    let (vocab_size, padded, head) = mohawk::read_ends(&file)?;
    file.only("norm_epsilon", &json!(EPSILON))?;
    let d_model: usize = file.required("d_model")?;
    let mlp = file.object("mlp_cfg")?;
    mlp.one_of("act_fn", &["silu"])?;
    let mixer = read_mixer(&file.object("ssm_cfg")?, d_model)?;
    let n_layer: usize = file.required("n_layer")?;
    check_layers("n_layer", n_layer)?;
    // Nothing in it has rotary positions, and so no file says which its teacher had.
    let rope = Rope {
        theta: 10000.0,
        head_dim: mixer.head_dim.unwrap_or(0),
        scaling: None,
    };
    let width = mlp.required("intermediate_size")?;
    let bias = mlp.required("bias")?;
    Ok(LlamaMambaConfig {
        family: "llama".into(),
        vocab_size,
        rope,
        network: llamas_network(
            padded,
            d_model,
            EPSILON,
            (width, bias),
            head,
            vec![mixer.into(); n_layer],
        ),
    })
}

/// The mixer of every layer.
fn read_mixer(ssm: &Keys, d_model: usize) -> Result<DiscreteMamba2Config, ConfigError> {
    let default = DiscreteMamba2Config::default();
    let activation = match ssm.one_of("activation", &["identity", "silu", "swish"])? {
        "identity" => Activation::Identity,
        _ => Activation::Silu,
    };
    let n_v_heads: usize = ssm.required("n_v_heads")?;
    let expand: usize = ssm.read("expand")?.unwrap_or(1);
    let width = expand.saturating_mul(d_model);
    let bias = ssm.read("bias")?.unwrap_or(false);
    Ok(DiscreteMamba2Config {
        d_state: ssm.required("d_state")?,
        n_v_heads,
        head_dim: Some(width.checked_div(n_v_heads).unwrap_or(0)),
        n_qk_heads: ssm.required("n_qk_heads")?,
        d_conv: ssm.read("d_conv")?.unwrap_or(default.d_conv),
        conv_bias: ssm.read("conv_bias")?.unwrap_or(true),
        chunk_size: ssm.read("chunk_size")?.unwrap_or(default.chunk_size),
        activation,
        bias,
        z_bias: !bias,
        ..default
    })
}
