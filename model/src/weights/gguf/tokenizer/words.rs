//! Byte-level BPE: how texts are cut into words before merges join their bytes.

use serde_json::{Map, Value, json};

use super::{Model, merges};
use crate::weights::error::WeightsError;
use crate::weights::gguf::header::Header;

/// What a word is to Qwen2's tokenizer and, with up to three digits together, to Llama 3's.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// To Mistral's Tekken, where a capital letter begins a word.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// To llama.cpp, where a file says `default`: these cut one after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}$+<=>^~|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}+",
    r"[0-9]{3}",
];

/// A way to cut a text into words.
pub(super) struct Words {
    /// What files call it.
    names: &'static [&'static str],
    normalizer: fn() -> Value,
    pre_tokenizer: fn() -> Value,
    /// Whether a word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with the token for that, unless the file says otherwise.
    pub(super) adds_bos: bool,
}

const WORDS: [Words; 6] = [
    Words {
        names: &["gpt-2"],
        normalizer: || Value::Null,
        pre_tokenizer: || byte_level(true),
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        names: &["smollm"],
        normalizer: || Value::Null,
        pre_tokenizer: || {
            let digits = json!({"type": "Digits", "individual_digits": true});
            sequence(&[digits, byte_level(true)])
        },
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        names: &["qwen2"],
        normalizer: || json!({"type": "NFC"}),
        pre_tokenizer: || sequence(&[split(QWEN2), byte_level(false)]),
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        names: &["llama-bpe", "llama3", "llama-v3"],
        normalizer: || Value::Null,
        pre_tokenizer: || sequence(&[split(LLAMA3), byte_level(false)]),
        ignore_merges: true,
        adds_bos: true,
    },
    Words {
        names: &["tekken"],
        normalizer: || Value::Null,
        pre_tokenizer: || sequence(&[split(TEKKEN), byte_level(false)]),
        ignore_merges: true,
        adds_bos: true,
    },
    Words {
        names: &["default"],
        normalizer: || Value::Null,
        pre_tokenizer: || {
            let mut cuts: Vec<Value> = DEFAULT.map(split).into();
            cuts.push(byte_level(false));
            sequence(&cuts)
        },
        ignore_merges: false,
        adds_bos: false,
    },
];

/// Bytes to the letters that stand for them; with `use_regex` behind GPT-2's cut into words.
fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// What the pattern finds, and what lies between.
fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": false,
    })
}

fn sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

impl Words {
    /// The way that a file calls `pre`.
    pub(super) fn of(pre: Option<&Value>) -> Option<&'static Self> {
        let pre = pre?.as_str()?;
        WORDS.iter().find(|words| words.names.contains(&pre))
    }

    /// All that files may call one.
    pub(super) fn names() -> String {
        let names: Vec<&str> = WORDS
            .iter()
            .flat_map(|words| words.names)
            .copied()
            .collect();
        names.join(", ")
    }

    /// The file's tokenizer, with this vocabulary of `ids`.
    pub(super) fn model(
        &self,
        header: &Header,
        ids: Map<String, Value>,
    ) -> Result<Model, WeightsError> {
        Ok(Model {
            normalizer: (self.normalizer)(),
            pre_tokenizer: (self.pre_tokenizer)(),
            decoder: byte_level(true),
            model: json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.ignore_merges,
                "vocab": ids,
                "merges": merges(header)?,
            }),
        })
    }
}
