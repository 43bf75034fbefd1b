//! Tokenizers from GGUF files.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// The golden folders with a GGUF file.
fn folders() -> Vec<PathBuf> {
    let mut folders = ::tests::cases("gguf-");
    folders.retain(|folder| folder.join("model.gguf").exists());
    assert!(!folders.is_empty());
    folders
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The ids of a text in which the names of special tokens are those tokens.
fn ids_with_special(tokenizer: &Tokenizer, special: &[(String, u32)], text: &str) -> Vec<u32> {
    let places = special
        .iter()
        .filter_map(|(name, id)| Some((text.find(name)?, name, *id)));
    match places.min() {
        None => tokenizer.encode(text).unwrap(),
        Some((at, name, id)) => {
            let after = ids_with_special(tokenizer, special, &text[at + name.len()..]);
            [tokenizer.encode(&text[..at]).unwrap(), vec![id], after].concat()
        }
    }
}

/// The tokenizer inside a GGUF file gives the recorded ids, and is the `tokenizer.json` beside it.
#[test]
fn the_tokenizer_of_a_gguf_file() {
    let mut texts = 0;
    for folder in folders() {
        let path = folder.join("model.gguf");
        let tokenizer = at(&path).unwrap().expect("a tokenizer");
        assert_eq!(tokenizer.path(), path);
        let file = model::tokenizer_json(&path).unwrap().unwrap();
        let json: Value = serde_json::from_slice(&file.bytes).unwrap();
        assert_eq!(json, read(&folder.join("tokenizer.json")));
        let special = json["added_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| {
                let name = token["content"].as_str().unwrap().to_owned();
                (name, token["id"].as_u64().unwrap() as u32)
            });
        let special: Vec<_> = special.collect();
        for case in read(&folder.join("tokens.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(
                ids_with_special(&tokenizer, &special, text),
                ids,
                "{text:?}"
            );
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            texts += 1;
        }
    }
    assert!(texts > 0);
}

/// How each kind of tokenizer cuts a text into words, whose letters are joined where a merge says so.
#[test]
fn words_of_gguf_tokenizers() {
    use ::tests::gguf::{Value, tiny};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    // As bytes have them in GPT-2's alphabet.
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    tokens.extend(["Ġ", "Ċ", "12", "123", "1234", "ĠĠ", "Ġa", "'S", "ab", "abx"].map(String::from));
    let merges = ["1 2", "12 3", "123 4", "Ġ Ġ", "Ġ a", "' S", "a b"];
    let words = |pre: &str, text: &str| {
        let file = tiny()
            .with("tokenizer.ggml.pre", pre)
            .with("tokenizer.ggml.tokens", Value::Texts(tokens.clone()))
            .with(
                "tokenizer.ggml.token_type",
                Value::I32s(vec![1; tokens.len()]),
            )
            .with(
                "tokenizer.ggml.merges",
                Value::Texts(merges.map(String::from).to_vec()),
            );
        std::fs::write(&path, file.bytes()).unwrap();
        let ids = at(&path)
            .unwrap()
            .expect("a tokenizer")
            .encode(text)
            .unwrap();
        let names = ids.iter().map(|&id| tokens[id as usize].as_str());
        names.collect::<Vec<_>>().join("|")
    };
    for (pre, numbers, blanks, end, known) in [
        ("gpt-2", "1234", "Ġ|Ġa", "'|S", "ab|x"),
        ("smollm", "1|2|3|4", "Ġ|Ġa", "'|S", "ab|x"),
        ("qwen2", "1|2|3|4", "Ġ|Ġa", "'S", "ab|x"),
        ("llama-bpe", "123|4", "Ġ|Ġa", "'S", "abx"),
    ] {
        assert_eq!(words(pre, "1234"), numbers, "{pre}");
        assert_eq!(words(pre, "b  a"), format!("b|{blanks}"), "{pre}");
        assert_eq!(words(pre, "x'S"), format!("x|{end}"), "{pre}");
        assert_eq!(words(pre, "abx"), known, "{pre}");
    }
    // Two blanks before a digit: one token where the digit is cut off first.
    assert_eq!(words("gpt-2", "a  1"), "a|Ġ|Ġ|1");
    assert_eq!(words("smollm", "a  1"), "a|ĠĠ|1");
    assert_eq!(words("qwen2", "a  1"), "a|Ġ|Ġ|1");
}
