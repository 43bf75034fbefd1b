//! The name of a token and the form of its score in a reply.

use std::fmt::Write;

use datasets::Tokenizer;

/// The log-probability for an impossible token: JSON has no minus infinity, and OpenAI writes this number.
const IMPOSSIBLE: f64 = -9999.0;

/// A log-probability as JSON can hold it.
pub(super) fn finite(log_probability: f64) -> f64 {
    log_probability.max(IMPOSSIBLE)
}

/// A token's name in a reply. Usually it is the token's text, with the blank that it begins with. If that is only a
/// part of a character, it is the bytes in OpenAI's form. If a token with a smaller id has the same bytes, or if the
/// text looks like one of the other forms, it is the id. So no two tokens have the same name.
pub(super) fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    let Some(bytes) = bytes.filter(|_| !tokenizer.repeats_bytes(id)) else {
        return format!("token_id:{id}");
    };
    match String::from_utf8(bytes) {
        Ok(text) if text.starts_with("bytes:") || text.starts_with("token_id:") => {
            format!("token_id:{id}")
        }
        Ok(text) => text,
        Err(error) => {
            let mut name = "bytes:".to_owned();
            for byte in error.as_bytes() {
                // Writing to a string does not fail.
                let _ = write!(name, "\\x{byte:02x}");
            }
            name
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use serde_json::{Map, Value, json};

    use super::*;

    /// A tokenizer like Llama 2's, whose pieces have a mark for the blank, and which has single bytes.
    pub(in crate::serve) fn llama() -> Tokenizer {
        let vocab = [
            "<unk>",
            "<0x0A>",
            "<0xE5>",
            "\u{2581}foo",
            "foo",
            "\u{2581}",
            "bytes:\\xe5",
            "\n",
            "a",
        ];
        let vocab: Map<String, Value> = (0..)
            .zip(vocab)
            .map(|(id, token)| (token.into(), id.into()))
            .collect();
        let fields = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "\u{2581}" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
            ] },
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                "vocab": vocab, "merges": [],
            },
        });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), fields.to_string()).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    }

    #[test]
    fn no_two_tokens_have_one_name() {
        let tokenizer = llama();
        let names: Vec<String> = (0..10).map(|id| token_text(&tokenizer, id)).collect();
        let expected = [
            "<unk>",
            "\n",
            "bytes:\\xe5",
            " foo",
            "foo",
            " ",
            "token_id:6",
            "token_id:7",
            "a",
            "token_id:9",
        ];
        assert_eq!(names, expected);
    }
}
