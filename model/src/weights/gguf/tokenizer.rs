//! The tokenizer of a GGUF file, as the files of a folder that hold it: `tokenizer.json` in the format of the crate
//! `tokenizers`, `tokenizer_config.json` and `generation_config.json`.
//!
//! Of byte-level BPE a file has the tokens and the merges. How a text is cut into words before is not in it: the
//! file names the way (`tokenizer.ggml.pre`), and another way would give other ids. So what is not known here is
//! refused; it includes `default`, with which llama.cpp reads files that name none, and which is no published
//! model's.

use serde_json::{Map, Value, json};

use super::header::Header;
use crate::config_error::ConfigError;
use crate::weights::error::WeightsError;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
/// Tokens that end a turn and a message, and with that a text.
const MORE_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Types of tokens: those that text cannot name, those that are looked for in the text before all else, and rows
/// that no text is encoded to.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What a word is to Qwen2's tokenizer and, with up to three digits together, to Llama 3's.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a name of a way to cut a text into words stands for.
struct Words {
    name: &'static str,
    normalizer: fn() -> Value,
    pre_tokenizer: fn() -> Value,
    /// Whether a word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with the token for that, unless the file says otherwise.
    adds_bos: bool,
}

const WORDS: [Words; 4] = [
    Words {
        name: "gpt-2",
        normalizer: || Value::Null,
        pre_tokenizer: || byte_level(true),
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        name: "smollm",
        normalizer: || Value::Null,
        pre_tokenizer: || {
            let digits = json!({"type": "Digits", "individual_digits": true});
            sequence(digits, byte_level(true))
        },
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        name: "qwen2",
        normalizer: || json!({"type": "NFC"}),
        pre_tokenizer: || sequence(split(QWEN2), byte_level(false)),
        ignore_merges: false,
        adds_bos: false,
    },
    Words {
        name: "llama-bpe",
        normalizer: || Value::Null,
        pre_tokenizer: || sequence(split(LLAMA3), byte_level(false)),
        ignore_merges: true,
        adds_bos: true,
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

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": false,
    })
}

fn sequence(first: Value, second: Value) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, second]})
}

/// The tokens of a file.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    words: &'static Words,
}

impl Vocabulary {
    /// `None` if the file has no tokenizer.
    fn read(header: &Header) -> Result<Option<Self>, WeightsError> {
        let unsupported = |key: &str, supported: String| {
            let value = header.values.get(key);
            header.error(ConfigError::Unsupported {
                key: key.into(),
                value: value.map_or("absent".into(), Value::to_string),
                supported: format!("{supported}; give the model's tokenizer.json beside the file"),
            })
        };
        let Some(model) = header.values.get(MODEL) else {
            return Ok(None);
        };
        if model != "gpt2" {
            return Err(unsupported(MODEL, "gpt2, which is byte-level BPE".into()));
        }
        let pre = header.values.get(PRE);
        let words = WORDS
            .iter()
            .find(|words| pre.is_some_and(|pre| pre == words.name));
        let names = || WORDS.map(|words| words.name).join(", ");
        let words = words.ok_or_else(|| unsupported(PRE, names()))?;
        let missing = |key: &str| header.error(ConfigError::Missing { key: key.into() });
        let tokens = header.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let types = header.integers(TYPES)?.ok_or_else(|| missing(TYPES))?;
        if tokens.len() != types.len() {
            return Err(header.file().damaged(format!(
                "`{TOKENS}` has {} elements and `{TYPES}` {}",
                tokens.len(),
                types.len()
            )));
        }
        Ok(Some(Self {
            tokens,
            types,
            words,
        }))
    }

    /// The token whose id is the value of `key`, if there is such a key.
    fn token(&self, header: &Header, key: &str) -> Result<Option<&str>, WeightsError> {
        let token = |value: &Value| self.tokens.get(usize::try_from(value.as_u64()?).ok()?);
        let found = header.values.get(key).map(|value| {
            token(value).map(String::as_str).ok_or_else(|| {
                header.file().damaged(format!(
                    "`{key}` is {value}, and the file has {} tokens",
                    self.tokens.len()
                ))
            })
        });
        found.transpose()
    }

    /// Whether a text begins with the token for that.
    fn adds_bos(&self, header: &Header) -> bool {
        let said = header.values.get(ADD_BOS).and_then(Value::as_bool);
        said.unwrap_or(self.words.adds_bos)
    }
}

/// The file's `tokenizer.json`; `None` if it has no tokenizer.
pub(super) fn tokenizer_json(header: &Header) -> Result<Option<Value>, WeightsError> {
    let Some(vocabulary) = Vocabulary::read(header)? else {
        return Ok(None);
    };
    let merges = header.texts(MERGES)?.unwrap_or_default();
    let merges = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok(json!([left, right])),
        _ => Err(header
            .file()
            .damaged(format!("`{MERGES}` has {merge:?}, which is not two tokens"))),
    });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    let mut ids = Map::new();
    let mut added = Vec::new();
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.types);
    for (id, (token, kind)) in tokens.enumerate() {
        if *kind == UNUSED {
            continue;
        }
        if ids.insert(token.clone(), id.into()).is_some() {
            let reason = format!("`{TOKENS}` has {token:?} twice");
            return Err(header.file().damaged(reason));
        }
        if [CONTROL, USER_DEFINED].contains(kind) {
            added.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind == CONTROL,
            }));
        }
    }
    let bos = vocabulary.token(header, BOS)?;
    let post_processor = match bos.filter(|_| vocabulary.adds_bos(header)) {
        Some(bos) => starts_with(bos, &header.values[BOS]),
        None => Value::Null,
    };
    let words = vocabulary.words;
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": (words.normalizer)(),
        "pre_tokenizer": (words.pre_tokenizer)(),
        "post_processor": post_processor,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": words.ignore_merges,
            "vocab": ids,
            "merges": merges,
        },
    })))
}

/// The step that puts the token `bos` before a text, or before the first of two.
fn starts_with(bos: &str, id: &Value) -> Value {
    let bos_token = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [bos_token, text("A", 0)],
        "pair": [bos_token, text("A", 0), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    })
}

/// The file's `tokenizer_config.json`, with the chat template and the names of the tokens at both ends of a text;
/// `None` if it has no tokenizer.
pub(super) fn tokenizer_config_json(header: &Header) -> Result<Option<Value>, WeightsError> {
    let Some(vocabulary) = Vocabulary::read(header)? else {
        return Ok(None);
    };
    let mut root = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "add_bos_token": vocabulary.adds_bos(header),
    });
    for (name, key) in [
        ("bos_token", BOS),
        ("eos_token", EOS),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(token) = vocabulary.token(header, key)? {
            root[name] = token.into();
        }
    }
    if let Some(template) = header.text(CHAT_TEMPLATE) {
        root["chat_template"] = template.into();
    }
    Ok(Some(root))
}

/// The file's `generation_config.json`, with the ids of the tokens at both ends of a text; `None` if it names none.
pub(super) fn generation_config_json(header: &Header) -> Result<Option<Value>, WeightsError> {
    let mut root = Map::new();
    let id = |key: &str| match header.values.get(key) {
        Some(value) if value.as_u64().is_none_or(|id| id > i32::MAX as u64) => {
            let reason = format!("`{key}` is {value}; it should be the id of a token");
            Err(header.file().damaged(reason))
        }
        value => Ok(value.cloned()),
    };
    if let Some(bos) = id(BOS)? {
        root.insert("bos_token_id".into(), bos);
    }
    let mut ends: Vec<Value> = Vec::new();
    for key in [EOS].into_iter().chain(MORE_ENDS) {
        let end = id(key)?;
        ends.extend(end.filter(|end| !ends.contains(end)));
    }
    match &ends[..] {
        [] => {}
        [end] => {
            root.insert("eos_token_id".into(), end.clone());
        }
        _ => {
            root.insert("eos_token_id".into(), ends.into());
        }
    }
    Ok(Some(Value::Object(root)).filter(|root| *root != json!({})))
}
