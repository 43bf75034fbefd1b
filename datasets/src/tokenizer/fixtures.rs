//! Tokenizers that the tests of several modules use.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{END_OF_TEXT, Tokenizer};
use crate::fixtures::{asset, write};

/// The bundled tokenizer.
pub(crate) fn phi_tiny() -> Tokenizer {
    Tokenizer::from_folder(asset("phi-tiny")).unwrap()
}

/// The bundled tokenizer after `change` to its JSON.
pub(crate) fn changed_tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let json = fs::read(asset("phi-tiny/tokenizer.json")).unwrap();
    let mut json = serde_json::from_slice(&json).unwrap();
    change(&mut json);
    let folder = TempDir::new().unwrap();
    let path = write(&folder, "tokenizer.json", json.to_string());
    Tokenizer::from_file(path).unwrap()
}

/// A tokenizer with two properties of CodeGen's: end-of-text is in the vocabulary but not registered
/// as a special token, and runs of 2 to 9 blanks and of 2 to 4 tabs are added tokens.
pub(crate) fn like_codegen() -> Tokenizer {
    changed_tokenizer(|json| {
        let blanks = (2..=9).map(|n| " ".repeat(n));
        let tabs = (2..=4).map(|n| "\t".repeat(n));
        json["added_tokens"] = blanks
            .chain(tabs)
            .enumerate()
            .map(|(i, content)| added_token(4096 + i, &content))
            .collect();
    })
}

/// An entry of `added_tokens` in a `tokenizer.json`.
pub(crate) fn added_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": false, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// A tokenizer of these fields, with nothing else.
pub(crate) fn tokenizer_of(fields: Value) -> Tokenizer {
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    });
    for (name, value) in fields.as_object().unwrap() {
        json[name] = value.clone();
    }
    let folder = TempDir::new().unwrap();
    let path = write(&folder, "tokenizer.json", json.to_string());
    Tokenizer::from_file(path).unwrap()
}

/// A BPE vocabulary of pieces with a mark for the blank and of single bytes, like Llama 2's, with a few
/// merges.
fn llama_model() -> Value {
    let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), END_OF_TEXT.into()];
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(["\u{2581}", "é", "漢", ".", "1"].map(String::from));
    let merges = [
        ("\u{2581}", "t"),
        ("h", "e"),
        ("\u{2581}t", "he"),
        ("\u{2581}", "\u{2581}"),
        ("a", "a"),
        ("aa", "aa"),
        ("aaaa", "aaaa"),
        ("o", "r"),
        ("\u{2581}", "w"),
        ("\u{2581}w", "or"),
    ];
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: serde_json::Map<String, Value> = (0..)
        .zip(tokens)
        .map(|(id, token)| (token, Value::from(id)))
        .collect();
    let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
        "merges": merges,
    })
}

/// Like Llama 2's: no pre-tokenizer, a mark put before the text by a normalizer, bytes.
pub(crate) fn like_llama() -> Tokenizer {
    tokenizer_of(json!({
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": llama_model(),
    }))
}

/// Like newer conversions of SentencePiece models: the marks are made and taken back by "Metaspace".
pub(crate) fn like_sentencepiece() -> Tokenizer {
    let metaspace = json!({
        "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true,
    });
    tokenizer_of(json!({
        "pre_tokenizer": metaspace,
        "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, metaspace] },
        "model": llama_model(),
    }))
}

/// Like Llama 3's and Qwen2's: byte-level, with a pattern of its own.
pub(crate) fn like_llama3() -> Tokenizer {
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    changed_tokenizer(|json| {
        json["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] });
        json["normalizer"] = json!({ "type": "NFC" });
    })
}

/// Like BERT's: words, and pieces that continue them.
pub(crate) fn like_bert() -> Tokenizer {
    let tokens = ["[UNK]", "the", "w", "##or", "##d", ".", "##s", END_OF_TEXT];
    let vocab: serde_json::Map<String, Value> = (0..)
        .zip(tokens)
        .map(|(id, token)| (token.into(), Value::from(id)))
        .collect();
    tokenizer_of(json!({
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }))
}
