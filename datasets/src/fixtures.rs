//! What the tests of this crate share.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Tokenizer;

/// A file of the bundled model or text.
pub(crate) fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

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

/// As CodeGen's tokenizer: end-of-text in the vocabulary but not registered, and tokens of their own
/// for runs of 2 to 9 blanks and 2 to 4 tabs.
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

pub(crate) fn added_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": false, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

pub(crate) fn write(folder: impl AsRef<Path>, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.as_ref().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}
