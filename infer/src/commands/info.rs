//! `infer info`: what a model is, and what this machine has for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use kernels::runtime::{Survey, survey};
use model::{FileTensor, MixerConfig, MixerOptions, NetworkConfig, Part};
use serde::Serialize;
use serde_json::{Value, json};

use super::CommandError;
use crate::end_tokens::EndTokens;
use crate::model_args::ModelArgsError;
use crate::output::say;
use crate::state_size::StateSizes;
use crate::table::pairs;

/// The lengths of text, in tokens, for which the size of a growing state is shown.
const LENGTHS: [usize; 4] = [1, 2048, 32_768, 131_072];

/// Says what a model is, and on which devices this program can run it.
///
/// Of the model: its architecture and sizes, its parameters by kind, how they are stored, and the
/// memory that each text takes while it is read and made, in f32; in bf16 or f16, keys and values and
/// convolutions' windows may take half of it. Nothing is computed, and only the headers of the weights
/// are read.
///
/// Of the devices: those that each backend finds here, or why it has none.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The folder of a model, a GGUF file, or a name on the Hugging Face hub
    #[arg(long, value_name = "FOLDER|FILE|OWNER/NAME[:FILE.gguf]")]
    model: Option<PathBuf>,

    /// Prints JSON, for programs
    #[arg(long)]
    json: bool,
}

impl InfoArgs {
    /// Runs the command.
    pub fn run(self) -> Result<(), CommandError> {
        let model = self.model.as_deref().map(ModelSummary::read).transpose()?;
        let backends = survey();
        let text = if self.json {
            let model = model.as_ref().map(ModelSummary::to_json);
            let backends: Vec<Value> = backends.iter().map(to_json).collect();
            format!("{:#}\n", json!({"model": model, "backends": backends}))
        } else {
            let model = model.as_ref().map(ModelSummary::rows).unwrap_or_default();
            pairs(model.into_iter().chain(backends.iter().map(row)))
        };
        say(&text)?;
        Ok(())
    }
}

/// What the files of a model say about it.
struct ModelSummary {
    folder: PathBuf,
    /// The name of the family of models.
    name: &'static str,
    network: NetworkConfig,
    /// The positions that attention was trained on; `None` for a model without attention.
    positions: Option<usize>,
    end_tokens: EndTokens,
    tensors: Vec<FileTensor>,
    state_sizes: StateSizes,
}

impl ModelSummary {
    fn read(name: &Path) -> Result<Self, CommandError> {
        let folder = model::locate(name)?;
        let (config, tensors) = model::describe(&folder)?;
        let network = config.network();
        let end_tokens = EndTokens::in_folder(&folder, network.vocab_size);
        Ok(Self {
            folder,
            name: config.name(),
            end_tokens: end_tokens.map_err(ModelArgsError::from)?,
            network,
            positions: config.max_positions(),
            tensors,
            state_sizes: StateSizes::of(&config),
        })
    }

    /// Parameters by kind, in the order of a network.
    fn parameters(&self) -> [(&'static str, u64); 5] {
        let names = ["embedding", "mixers", "MLPs", "norms", "head"];
        let mut kinds = names.map(|name| (name, 0));
        for (kind, part) in kinds.iter_mut().zip(Part::ALL) {
            let tensors = self.tensors.iter().filter(|tensor| tensor.part == part);
            kind.1 = tensors.map(elements).sum();
        }
        kinds
    }

    /// Bytes of the parameters, by their stored dtype.
    fn bytes(&self) -> BTreeMap<String, u64> {
        let mut bytes = BTreeMap::new();
        for tensor in &self.tensors {
            let sum: &mut u64 = bytes.entry(tensor.stored_as.clone()).or_default();
            *sum = sum.saturating_add(tensor.bytes);
        }
        bytes
    }

    /// Runs of equal mixers: the number of layers, and their mixer.
    fn mixers(&self) -> Vec<(usize, &MixerConfig)> {
        let runs = self.network.mixers.chunk_by(|a, b| a == b);
        runs.map(|run| (run.len(), &run[0])).collect()
    }

    /// Names and what they stand for, with an empty row at the end.
    fn rows(&self) -> Vec<[String; 2]> {
        let network = &self.network;
        let mut rows = Vec::new();
        let mut row = |name: &str, what: String| rows.push([name.to_owned(), what]);
        row("model", self.folder.display().to_string());
        row("architecture", self.name.into());
        let mixers = self.mixers().into_iter();
        let mixers = mixers.map(|(n, mixer)| format!("{n} x {}", mixer.describe(network.d_model)));
        row("layers", mixers.collect::<Vec<_>>().join("; "));
        row(
            "widths",
            format!(
                "model {}, MLP {}, vocabulary {}",
                network.d_model, network.mlp.intermediate_size, network.vocab_size
            ),
        );
        let context = match self.positions {
            Some(positions) => format!("{} tokens", HumanCount(positions as u64)),
            None => "without an end".into(),
        };
        row("context", context);
        let ends = match &self.end_tokens.file {
            Some(file) => {
                let ids = self.end_tokens.ids.iter().map(u32::to_string);
                format!("{} by {file}", ids.collect::<Vec<_>>().join(", "))
            }
            None => "the tokenizer's end of text".into(),
        };
        row("end tokens", ends);
        let kinds = self.parameters();
        let each = kinds.map(|(kind, n)| format!("{kind} {}", HumanCount(n)));
        let all = HumanCount(kinds.iter().map(|(_, n)| n).sum());
        row("parameters", format!("{all}: {}", each.join(", ")));
        let stored = self.bytes().into_iter();
        let stored = stored.map(|(dtype, n)| format!("{} in {dtype}", BinaryBytes(n)));
        row("on disk", stored.collect::<Vec<_>>().join(", "));
        row("state", self.state());
        let kept = kept_heads(network);
        if !kept.is_empty() {
            row("kept heads", in_words(&kept));
        }
        row("", String::new());
        rows
    }

    /// The size of the state of one text, in words.
    fn state(&self) -> String {
        let size = self.state_sizes.model;
        let bytes = |n: usize| BinaryBytes(size.bytes(n) as u64);
        if size.per_token == 0 {
            return format!("{} a text in f32, whatever its length", bytes(0));
        }
        let end = self.positions.unwrap_or(usize::MAX);
        let lengths = LENGTHS.iter().filter(|n| **n < end).chain(&self.positions);
        let each = lengths.map(|&n| format!("{} at {}", bytes(n), HumanCount(n as u64)));
        format!("{} tokens, in f32", each.collect::<Vec<_>>().join(", "))
    }

    fn to_json(&self) -> Value {
        let mixers = self.mixers().into_iter().map(
            |(n, mixer)| json!({"layers": n, "kind": mixer.kind(), "config": mixer.to_json()}),
        );
        let parameters: BTreeMap<_, _> = self.parameters().into();
        json!({
            "folder": self.folder,
            "architecture": self.state_sizes.architecture,
            "layers": self.network.mixers.len(),
            "mixers": mixers.collect::<Vec<_>>(),
            "d_model": self.network.d_model,
            "intermediate_size": self.network.mlp.intermediate_size,
            "vocab_size": self.network.vocab_size,
            "positions": self.positions,
            "end_tokens": self.end_tokens.file.as_ref().map(|_| &self.end_tokens.ids[..]),
            "parameters": parameters,
            "total_parameters": parameters.values().sum::<u64>(),
            "bytes": self.bytes(),
            "state": self.state_sizes.model,
            "kept_heads": kept_heads(&self.network),
        })
    }
}

/// Attention heads beside the state-space mixer of a layer, and the memory of their keys and values in f32.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct KeptHeads {
    /// The layer, from 0.
    layer: usize,
    /// The teacher's heads, if the model says which; otherwise empty.
    heads: Vec<usize>,
    /// The number of these heads.
    count: usize,
    /// Bytes for a window, which do not grow.
    fixed: usize,
    /// Bytes for each token that was read.
    per_token: usize,
}

fn kept_heads(network: &NetworkConfig) -> Vec<KeptHeads> {
    let layers = network.mixers.iter().enumerate();
    let kept = layers.filter_map(|(layer, mixer)| {
        let MixerConfig::BesideAttention(both) = mixer else {
            return None;
        };
        let attention = both.attention.as_ref()?;
        let size = attention.state_size(network.d_model);
        Some(KeptHeads {
            layer,
            heads: both.heads.clone(),
            count: attention.n_heads,
            fixed: size.fixed,
            per_token: size.per_token,
        })
    });
    kept.collect()
}

/// Such as `6 beside the mixers (3/1, 7/5, ..), 1.50 KiB a token`.
fn in_words(kept: &[KeptHeads]) -> String {
    let sum = |of: fn(&KeptHeads) -> usize| kept.iter().map(of).fold(0, usize::saturating_add);
    let names = kept.iter().flat_map(|layer| {
        let heads = layer.heads.iter();
        heads.map(move |head| format!("{}/{head}", layer.layer))
    });
    let names: Vec<String> = names.collect();
    let count = sum(|layer| layer.count);
    let mut words = format!("{count} beside the mixers");
    // All heads of a layer within a window are not named.
    if names.len() == count {
        words += &format!(" ({})", names.join(", "));
    }
    for (bytes, when) in [
        (sum(|layer| layer.per_token), "a token"),
        (sum(|layer| layer.fixed), "a text"),
    ] {
        if bytes > 0 {
            words += &format!(", {} {when}", BinaryBytes(bytes as u64));
        }
    }
    words + ", in f32"
}

fn elements(tensor: &FileTensor) -> u64 {
    tensor.shape.iter().map(|&n| n as u64).product()
}

/// A backend's name, and its devices or why it has none.
fn row(survey: &Survey) -> [String; 2] {
    let found = match &survey.devices {
        Ok(devices) => devices.join("; "),
        Err(reason) => format!("- {reason}"),
    };
    [survey.backend.into(), found]
}

fn to_json(survey: &Survey) -> Value {
    let (devices, reason) = match &survey.devices {
        Ok(devices) => (devices.clone(), None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    json!({"backend": survey.backend, "devices": devices, "unusable": reason})
}

#[cfg(test)]
mod tests {
    use kernels::Window;
    use model::{
        AttentionConfig, BesideAttentionConfig, DiscreteMamba2Config, Family, Joined, LlamaConfig,
        LlamaFamily,
    };

    use super::*;

    #[test]
    fn kept_heads_are_counted_by_layer() {
        let mut network = LlamaConfig::default_of(LlamaFamily::Llama).network();
        network.d_model = 64;
        let beside = |attention: Option<AttentionConfig>, heads: &[usize]| {
            let both = BesideAttentionConfig {
                ssm: DiscreteMamba2Config::with_heads(4),
                attention,
                heads: heads.to_vec(),
                joined: Joined::Sum,
            };
            MixerConfig::from(both)
        };
        let attention = |n_heads, n_kv_heads| AttentionConfig {
            n_kv_heads,
            head_dim: Some(16),
            ..AttentionConfig::with_heads(n_heads)
        };
        network.mixers = vec![
            beside(None, &[]),
            beside(Some(attention(2, 1)), &[0, 1]),
            AttentionConfig::with_heads(4).into(),
            beside(Some(attention(1, 1)), &[3]),
        ];
        let kept = kept_heads(&network);
        let bytes: Vec<_> = kept
            .iter()
            .map(|l| (l.layer, l.count, l.per_token))
            .collect();
        // Keys and values of one head of 16 in each.
        assert_eq!(bytes, [(1, 2, 128), (3, 1, 128)]);
        let words = in_words(&kept);
        assert!(
            words.starts_with("3 beside the mixers (1/0, 1/1, 3/3), 256 B"),
            "{words}"
        );

        let window = Some(Window {
            window: 6,
            sinks: 2,
        });
        let windowed = AttentionConfig {
            window,
            ..attention(4, 2)
        };
        network.mixers = vec![beside(Some(windowed), &[])];
        let kept = kept_heads(&network);
        assert_eq!((kept[0].fixed, kept[0].per_token), (8 * 256, 0));
        assert!(!in_words(&kept).contains('('));
    }
}
