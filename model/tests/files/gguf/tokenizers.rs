//! The tokenizer that a file holds.

use tests::gguf::{Gguf, Value, pieces, tiny};

use super::{file_of, load, without};

/// A tokenizer that would cut texts in another way is refused, and only when it is asked for.
#[test]
fn tokenizers_that_are_not_implemented() {
    for (key, value) in [
        ("tokenizer.ggml.model", "bert"),
        ("tokenizer.ggml.pre", "chatglm-bpe"),
        ("tokenizer.ggml.pre", ""),
    ] {
        let (_folder, path) = file_of(&tiny().with(key, value).bytes());
        load(&path).expect("the network");
        let said = model::tokenizer_json(&path).unwrap_err().to_string();
        assert!(said.contains(&format!("`{key}` is \"{value}\"")), "{said}");
        assert!(said.contains("tokenizer.json"), "{said}");
    }
    let (_folder, path) = file_of(&without("tokenizer.ggml.model").bytes());
    assert_eq!(model::tokenizer_json(&path).unwrap(), None);
}

/// The `tokenizer.json` of a file, or why there is none.
fn tokenizer_of(file: &Gguf) -> Result<serde_json::Value, String> {
    let (_folder, path) = file_of(&file.bytes());
    let found = model::tokenizer_json(&path).map_err(|error| error.to_string())?;
    let bytes = found.expect("a tokenizer").bytes;
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

/// SentencePiece's: by the scores, and by the file's merges only where the scores rank nothing.
#[test]
fn tokenizers_of_pieces() {
    let json = tokenizer_of(&pieces()).expect("a tokenizer");
    let steps = json["normalizer"]["normalizers"].as_array().map(Vec::len);
    let decoders = json["decoder"]["decoders"].as_array().map(Vec::len);
    assert_eq!((steps, decoders), (Some(2), Some(4)));
    assert_eq!(json["model"]["unk_token"], "<unk>");
    assert_eq!(json["added_tokens"].as_array().map(Vec::len), Some(3));
    // The best score is that of the first piece behind the bytes.
    let merges = json["model"]["merges"].as_array().expect("merges");
    assert_eq!(merges[0], serde_json::json!(["\u{2581}", "t"]));
    assert!(merges.len() > 200, "{}", merges.len());
    let no_blank = pieces().with("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    let plain = tokenizer_of(&no_blank).expect("a tokenizer");
    assert_eq!(
        plain["normalizer"]["normalizers"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(
        plain["decoder"]["decoders"].as_array().map(Vec::len),
        Some(3)
    );
    let both = pieces().with("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let both = tokenizer_of(&both).expect("a tokenizer");
    let special = |i: usize| both["post_processor"]["single"][i]["SpecialToken"]["id"].clone();
    assert_eq!((special(0), special(2)), ("<s>".into(), "</s>".into()));

    let tied = || pieces().with("tokenizer.ggml.scores", Value::F32s(vec![-1000.0; 512]));
    let said = tokenizer_of(&tied()).expect_err("no order");
    assert!(
        said.contains("`tokenizer.ggml.scores` is -1000 for both"),
        "{said}"
    );
    let merges = Value::Texts(vec!["h e".into()]);
    let merged = tied().with("tokenizer.ggml.merges", merges);
    let merged = tokenizer_of(&merged).expect("merges");
    assert_eq!(merged["model"]["merges"], serde_json::json!([["h", "e"]]));

    let long = |file: Gguf| {
        let tokens = (0..512).map(|i| format!("{i}{}", "x".repeat(300)));
        file.with("tokenizer.ggml.tokens", Value::Texts(tokens.collect()))
    };
    let without = |key: &str| {
        let mut file = pieces();
        file.keys.retain(|(known, _)| known != key);
        file
    };
    let nothing = || Value::Texts((0..512).map(|i| format!("t{i}")).collect());
    let known = || Value::I32s(vec![1; 512]);
    for (file, words) in [
        (
            without("tokenizer.ggml.scores"),
            "`tokenizer.ggml.scores` is missing",
        ),
        (
            without("tokenizer.ggml.bos_token_id"),
            "`tokenizer.ggml.bos_token_id` is missing",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::F32s(vec![0.5])),
            "512 elements and",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::I32s(vec![1])),
            "an array of f32",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 512])),
            "gives NaN",
        ),
        (long(pieces()), "at most 256 bytes"),
        (
            pieces().with("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true)),
            "`tokenizer.ggml.remove_extra_whitespaces` is true",
        ),
        (
            pieces().with("tokenizer.ggml.precompiled_charsmap", Value::I32s(vec![1])),
            "`tokenizer.ggml.precompiled_charsmap` is",
        ),
        (
            pieces().with("tokenizer.ggml.add_space_prefix", 1),
            "should be true or false",
        ),
        (
            without("tokenizer.ggml.unknown_token_id")
                .with("tokenizer.ggml.tokens", nothing())
                .with("tokenizer.ggml.token_type", known()),
            "neither a token for each byte",
        ),
    ] {
        let said = tokenizer_of(&file).expect_err(words);
        assert!(said.contains(words) && said.contains("m.gguf"), "{said}");
    }
}
