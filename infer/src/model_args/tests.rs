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
        let tokenizer = own_tokenizer(&path).unwrap().expect("a tokenizer");
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
        let ids = own_tokenizer(&path)
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

/// What the tokenizer of `file` is, and the folder that it is in.
fn tokenizer_of(file: &::tests::gguf::Gguf) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let tokenizer = own_tokenizer(&path).unwrap().expect("a tokenizer");
    let place = beside(&tokenizer);
    let tokenizer = with_beginning(tokenizer, &place).unwrap();
    (folder, tokenizer)
}

/// The recorded texts of a tokenizer, each with all that was recorded of it.
fn texts(recorded: &Value) -> Vec<(&str, Vec<u32>, &Value)> {
    let cases = recorded["cases"].as_array().unwrap().iter();
    let text =
        |case: &'_ Value| -> Vec<u32> { serde_json::from_value(case["ids"].clone()).unwrap() };
    cases
        .map(|case| (case["text"].as_str().unwrap(), text(case), case))
        .collect()
}

/// SentencePiece's own ids and texts, whole and token by token, from the tokens and scores of a file.
#[test]
fn pieces_of_gguf_tokenizers() {
    let (_folder, tokenizer) = tokenizer_of(&::tests::gguf::pieces());
    assert_eq!((tokenizer.begin(), tokenizer.prefix()), (&[1][..], Some(1)));
    assert_eq!(tokenizer.end_of_text(), Some(2));
    let recorded = ::tests::gguf::recorded("pieces");
    for (text, ids, case) in texts(&recorded) {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(
            tokenizer.encode_prompt(text).unwrap(),
            [&[1], &ids[..]].concat()
        );
        let decoded = case["decoded"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded);
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for id in &ids {
            streamed.extend(stream.push(*id).unwrap());
        }
        assert_eq!(streamed + &stream.finish().unwrap(), decoded);
    }
    // Only a chat has tokens by their names; behind each, a text begins anew.
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    let chat = tokenizer.encode_chat("<s>It was</s>the").unwrap();
    assert_eq!(chat, [&[1], &ids("It was")[..], &[2], &ids("the")].concat());

    let no_blank = ::tests::gguf::pieces().with(
        "tokenizer.ggml.add_space_prefix",
        ::tests::gguf::Value::Bool(false),
    );
    let (_folder, plain) = tokenizer_of(&no_blank);
    let words = ids("It was the best of times");
    assert_eq!(plain.encode(" It was the best of times").unwrap(), words);
    assert_eq!(plain.decode(&words).unwrap(), " It was the best of times");
    assert_eq!(
        tokenizer.decode(&words).unwrap(),
        "It was the best of times"
    );
}

/// The recorded ids of each way to cut a text into words.
#[test]
fn cuts_of_gguf_tokenizers() {
    use ::tests::gguf::{Value, tiny};
    let recorded = ::tests::gguf::recorded("words");
    let array =
        |key: &str| -> Vec<String> { serde_json::from_value(recorded[key].clone()).unwrap() };
    let tokens = array("tokens");
    let file = tiny()
        .with(
            "tokenizer.ggml.token_type",
            Value::I32s(vec![1; tokens.len()]),
        )
        .with("tokenizer.ggml.tokens", Value::Texts(tokens))
        .with("tokenizer.ggml.merges", Value::Texts(array("merges")));
    let mut seen = std::collections::BTreeMap::new();
    for (text, ids, case) in texts(&recorded) {
        let pre = case["pre"].as_str().unwrap();
        let (_, tokenizer) = seen
            .entry(pre)
            .or_insert_with(|| tokenizer_of(&file.clone().with("tokenizer.ggml.pre", pre)));
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{pre}: {text:?}");
    }
    assert_eq!(seen.len(), 6);
}
