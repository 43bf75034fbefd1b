//! Tokenizers that the tests of several modules use.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Tokenizer;
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
