//! SentencePiece's BPE, as Llama 2, Mistral and TinyLlama have it: a text is not cut into words, its blanks are the
//! letter `▁`, and what the vocabulary cannot spell is written in bytes.
//!
//! Such a file has a score for each token in the place of merges. Of two neighbours that are a token together, the
//! pair whose token has the highest score is joined first, wherever that token is split. So the merges are all
//! splits of all tokens into two, by the tokens' scores. llama.cpp reads a file like that, and transformers, too.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    BYTE, CONTROL, MERGES, Model, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, flag, merges,
};
use crate::config_error::ConfigError;
use crate::weights::error::WeightsError;
use crate::weights::gguf::header::Header;

const SCORES: &str = "tokenizer.ggml.scores";
const ADD_BLANK: &str = "tokenizer.ggml.add_space_prefix";
const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
/// What changes a text before it is encoded, which Llama's tokenizers do not.
const DROPS_BLANKS: &str = "tokenizer.ggml.remove_extra_whitespaces";
const CHARACTERS: &str = "tokenizer.ggml.precompiled_charsmap";

/// The letter that stands for a blank.
const MARK: &str = "\u{2581}";
/// Bytes of a token that merges make, at most, so that a damaged file cannot keep a reader busy with its splits.
const LONGEST: usize = 256;

/// The file's tokenizer, with this vocabulary of `ids`.
pub(super) fn model(
    header: &Header,
    vocabulary: &Vocabulary,
    ids: Map<String, Value>,
) -> Result<Model, WeightsError> {
    let changed = if flag(header, DROPS_BLANKS, false)? {
        Some(DROPS_BLANKS)
    } else {
        header.values.contains_key(CHARACTERS).then_some(CHARACTERS)
    };
    if let Some(key) = changed {
        let value = header.values[key].to_string();
        return Err(unsupported(header, key, value, "texts as they are"));
    }
    let unknown = unknown(header, vocabulary)?;
    let byte = |byte: u8| ids.contains_key(&format!("<0x{byte:02X}>"));
    if unknown.is_none() && !(0..=255).all(byte) {
        return Err(header.file().damaged(
            "its tokenizer has neither a token for each byte nor one for what is unknown",
        ));
    }
    let merges = scored_merges(header, vocabulary)?;
    let adds_blank = flag(header, ADD_BLANK, true)?;
    let blank_to_mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK});
    let mark_to_blank = json!({"type": "Replace", "pattern": {"String": MARK}, "content": " "});
    let mut normalizers = vec![blank_to_mark];
    let mut decoders = vec![
        mark_to_blank,
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if adds_blank {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": MARK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Model {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": ids,
            "merges": merges,
        }),
    })
}

fn unsupported(header: &Header, key: &str, value: String, supported: &str) -> WeightsError {
    header.error(ConfigError::Unsupported {
        key: key.into(),
        value,
        supported: format!("{supported}; give the model's tokenizer.json beside the file"),
    })
}

/// The token for what has no other, if there is one.
fn unknown<'v>(
    header: &Header,
    vocabulary: &'v Vocabulary,
) -> Result<Option<&'v str>, WeightsError> {
    if header.values.contains_key(UNKNOWN_ID) {
        return vocabulary.token(header, UNKNOWN_ID);
    }
    let place = vocabulary.types.iter().position(|kind| *kind == UNKNOWN);
    Ok(place.map(|id| vocabulary.tokens[id].as_str()))
}

/// The merges that the scores stand for. Where they rank no tokens, as in files that were made of another format,
/// those that the file has.
fn scored_merges(header: &Header, vocabulary: &Vocabulary) -> Result<Vec<Value>, WeightsError> {
    let scores = header.floats(SCORES)?;
    let scores = scores.ok_or_else(|| header.error(ConfigError::Missing { key: SCORES.into() }))?;
    vocabulary.one_each(header, SCORES, scores.len())?;
    // The other types are never made of parts: they are found in a text before, or not at all.
    let whole = [UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE];
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.types).zip(scores);
    let joined = tokens.filter(|((_, kind), _)| !whole.contains(kind));
    let joined: Vec<(&str, f32)> = joined
        .map(|((token, _), score)| (token.as_str(), score))
        .collect();
    let known: HashSet<&str> = joined.iter().map(|(token, _)| *token).collect();
    let mut splits = Vec::new();
    for (token, score) in joined {
        if token.len() > LONGEST || score.is_nan() {
            return Err(header.file().damaged(format!(
                "`{SCORES}` gives {score} to a token of {} bytes; it should be a number, and at most {LONGEST} bytes",
                token.len()
            )));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) {
                splits.push((score, left, right));
            }
        }
    }
    // Splits of one token stay together, those with the longer beginning first, as transformers has them.
    splits.sort_by(|(a, left, _), (b, other, _)| b.total_cmp(a).then(other.len().cmp(&left.len())));
    let tied = splits.windows(2).find_map(|pair| {
        let [(a, left, right), (b, other_left, other_right)] = pair else {
            return None;
        };
        let (one, other) = (
            format!("{left}{right}"),
            format!("{other_left}{other_right}"),
        );
        (a == b && one != other).then(|| format!("{a} for both {one:?} and {other:?}"))
    });
    match tied {
        None => Ok(splits
            .into_iter()
            .map(|(_, left, right)| json!([left, right]))
            .collect()),
        Some(_) if header.values.contains_key(MERGES) => merges(header),
        Some(scores) => Err(unsupported(
            header,
            SCORES,
            scores,
            "scores that rank the tokens",
        )),
    }
}
