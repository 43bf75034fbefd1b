//! The tokenizer of a GGUF file, as the files of a folder that hold it: `tokenizer.json` in the format of the crate
//! `tokenizers`, `tokenizer_config.json` and `generation_config.json`.
//!
//! For byte-level BPE, a file contains the tokens and the merges. It does not contain the rule that splits a text into
//! words before the merges, but only the name of this rule (`tokenizer.ggml.pre`), and another rule would give other
//! ids. So a file with an unknown name, or without a name, is refused. For SentencePiece's BPE, a file contains the
//! tokens and their scores, and nothing else is needed.

mod pieces;
mod words;

use serde_json::{Map, Value, json};

use self::words::Words;
use super::header::Header;
use crate::config_error::ConfigError;
use crate::weights::error::WeightsError;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
/// Tokens that end a turn and a message, and with that a text.
const MORE_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Types of tokens: what stands for all that has no token, those that text cannot name, those that are looked for in
/// the text before all else, rows that no text is encoded to, and single bytes of what has no other token.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// How the tokens of a text are found.
#[derive(Clone, Copy)]
enum Kind {
    /// Byte-level BPE in words.
    Words(&'static Words),
    /// SentencePiece's BPE.
    Pieces,
}

/// What the kinds of tokenizers have each of their own in a `tokenizer.json`.
struct Model {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

/// A token that is put to texts, and its id.
type End<'a> = (&'a str, &'a Value);

/// The tokens of a file.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    kind: Kind,
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
        let kind = if model == "llama" {
            Kind::Pieces
        } else if model == "gpt2" {
            let words = Words::of(header.values.get(PRE));
            Kind::Words(words.ok_or_else(|| unsupported(PRE, Words::names()))?)
        } else {
            let supported = "gpt2, which is byte-level BPE, and llama, which is SentencePiece's";
            return Err(unsupported(MODEL, supported.into()));
        };
        let missing = |key: &str| header.error(ConfigError::Missing { key: key.into() });
        let tokens = header.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let types = header.integers(TYPES)?.ok_or_else(|| missing(TYPES))?;
        let vocabulary = Self {
            tokens,
            types,
            kind,
        };
        vocabulary.one_each(header, TYPES, vocabulary.types.len())?;
        Ok(Some(vocabulary))
    }

    /// Checks that the array `key`, which has `length` elements, has one element for each token.
    fn one_each(&self, header: &Header, key: &str, length: usize) -> Result<(), WeightsError> {
        if self.tokens.len() == length {
            return Ok(());
        }
        Err(header.file().damaged(format!(
            "`{TOKENS}` has {} elements and `{key}` {length}",
            self.tokens.len(),
        )))
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
    fn adds_bos(&self, header: &Header) -> Result<bool, WeightsError> {
        let unless_said = match self.kind {
            Kind::Words(words) => words.adds_bos,
            Kind::Pieces => true,
        };
        flag(header, ADD_BOS, unless_said)
    }

    /// What is put before and behind a text, each with its id.
    fn ends<'a>(&'a self, header: &'a Header) -> Result<[Option<End<'a>>; 2], WeightsError> {
        let adds_eos = flag(header, ADD_EOS, false)?;
        Ok([
            self.end(header, self.adds_bos(header)?, BOS)?,
            self.end(header, adds_eos, EOS)?,
        ])
    }

    /// The token of `key`, if it is `added` to texts.
    fn end<'a>(
        &'a self,
        header: &'a Header,
        added: bool,
        key: &str,
    ) -> Result<Option<End<'a>>, WeightsError> {
        if !added {
            return Ok(None);
        }
        match self.token(header, key)? {
            Some(token) => Ok(Some((token, &header.values[key]))),
            None => Err(header.error(ConfigError::Missing { key: key.into() })),
        }
    }
}

/// The truth value of `key`; `default` if there is no such key.
fn flag(header: &Header, key: &str, default: bool) -> Result<bool, WeightsError> {
    let Some(value) = header.values.get(key) else {
        return Ok(default);
    };
    value.as_bool().ok_or_else(|| {
        let reason = format!("`{key}` is {value}; it should be true or false");
        header.file().damaged(reason)
    })
}

/// The merges that the file has, the first ones first.
fn merges(header: &Header) -> Result<Vec<Value>, WeightsError> {
    let merges = header.texts(MERGES)?.unwrap_or_default();
    let merges = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok(json!([left, right])),
        _ => Err(header
            .file()
            .damaged(format!("`{MERGES}` has {merge:?}, which is not two tokens"))),
    });
    merges.collect()
}

/// The file's `tokenizer.json`; `None` if it has no tokenizer.
pub(super) fn tokenizer_json(header: &Header) -> Result<Option<Value>, WeightsError> {
    let Some(vocabulary) = Vocabulary::read(header)? else {
        return Ok(None);
    };
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
        if [UNKNOWN, CONTROL, USER_DEFINED].contains(kind) {
            added.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind != USER_DEFINED,
            }));
        }
    }
    let post_processor = between(vocabulary.ends(header)?);
    let model = match vocabulary.kind {
        Kind::Words(words) => words.model(header, ids)?,
        Kind::Pieces => pieces::model(header, &vocabulary, ids)?,
    };
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": model.normalizer,
        "pre_tokenizer": model.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": model.decoder,
        "model": model.model,
    })))
}

/// The step that puts a text, or two, between these tokens.
fn between(ends: [Option<End<'_>>; 2]) -> Value {
    if ends == [None; 2] {
        return Value::Null;
    }
    let step = |(token, _): End<'_>| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let [begin, end] = ends.map(|end| Vec::from_iter(end.map(step)));
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let around = |texts: &[Value]| [&begin[..], texts, &end].concat();
    let mut special = Map::new();
    for (token, id) in ends.into_iter().flatten() {
        let named = json!({"id": token, "ids": [id], "tokens": [token]});
        special.insert(token.into(), named);
    }
    json!({
        "type": "TemplateProcessing",
        "single": around(&[text("A", 0)]),
        "pair": around(&[text("A", 0), text("B", 1)]),
        "special_tokens": special,
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
        "add_bos_token": vocabulary.adds_bos(header)?,
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
