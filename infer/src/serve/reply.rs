//! The JSON of `/v1/completions` in OpenAI's shape.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use datasets::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use super::echo::Echo;
use crate::engine::{Finish, Token, TokenScore};

/// The log-probability of an impossible token: JSON has no minus infinity, and OpenAI writes this.
const IMPOSSIBLE: f64 = -9999.0;

/// One response, or one piece of a stream.
#[derive(Serialize)]
pub(super) struct Reply<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// One text, or a piece of it.
#[derive(Serialize, Default)]
pub(super) struct CompletionChoice {
    pub text: String,
    pub index: usize,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
}

impl CompletionChoice {
    /// Appends `more`.
    pub(super) fn extend(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.finish_reason = more.finish_reason.or(self.finish_reason);
        match (&mut self.logprobs, more.logprobs) {
            (Some(logprobs), Some(more)) => logprobs.extend(more),
            (logprobs @ None, more) => *logprobs = more,
            (Some(_), None) => {}
        }
    }
}

/// The number of tokens of a response.
#[derive(Clone, Copy, Serialize, Default)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// The fields that all replies to a request share.
pub(super) struct Heading {
    id: String,
    created: u64,
    model: String,
}

impl Heading {
    pub(super) fn new(model: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let random = || RandomState::new().hash_one(());
        Self {
            id: format!("cmpl-{:016x}{:016x}", random(), random()),
            created: now.map_or(0, |now| now.as_secs()),
            model: model.into(),
        }
    }

    pub(super) fn reply(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Reply<'_> {
        Reply {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

/// The scores of some tokens, one entry per token in each field.
#[derive(Serialize, Default, PartialEq, Debug)]
pub(super) struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Appends a token whose text begins at character `offset` of its choice.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, score: Option<&TokenScore>, offset: usize) {
        let token = token_text(tokenizer, id);
        self.token_logprobs
            .push(score.map(|score| finite(score.log_probability)));
        self.top_logprobs.push(score.map(|score| {
            // Names are unique, and in order of likelihood, so that the first is the greedy choice.
            let mut top = Map::new();
            for (id, log_probability) in &score.likeliest {
                top.entry(token_text(tokenizer, *id))
                    .or_insert_with(|| finite(*log_probability).into());
            }
            // The token itself is among them, even if it was not likely.
            top.entry(&token)
                .or_insert_with(|| finite(score.log_probability).into());
            top
        }));
        self.tokens.push(token);
        self.text_offset.push(offset);
    }

    /// The scores of tokens that were made, after `before` characters of a prompt.
    pub(super) fn of_made(tokenizer: &Tokenizer, tokens: &[Token], before: usize) -> Self {
        let mut logprobs = Self::default();
        for token in tokens {
            let offset = before + token.start;
            logprobs.push(tokenizer, token.id, token.score.as_ref(), offset);
        }
        logprobs
    }

    /// The scores of a range of a prompt's tokens.
    pub(super) fn of_prompt(
        tokenizer: &Tokenizer,
        (prompt, echo): (&[u32], &Echo),
        tokens: Range<usize>,
        scores: &[Option<TokenScore>],
    ) -> Self {
        let mut logprobs = Self::default();
        for (i, score) in tokens.zip(scores) {
            let offset = echo.characters_before(i);
            logprobs.push(tokenizer, prompt[i], score.as_ref(), offset);
        }
        logprobs
    }

    /// Appends `more`.
    fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
    }
}

fn finite(log_probability: f64) -> f64 {
    log_probability.max(IMPOSSIBLE)
}

/// A token's name in a reply: its text, with the blank that it begins with; or, if that is only a part of a
/// character, its bytes in OpenAI's form; or, if a token with a smaller id has the same bytes or the text
/// looks like another form, its id. So no two tokens have the same name.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
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

/// OpenAI's name for why a text has ended.
pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfText | Finish::StopString => "stop",
        Finish::MaxTokens | Finish::ContextFull | Finish::TimeUp => "length",
    }
}

/// A response with a JSON body.
pub(super) fn json_response(status: StatusCode, json: &impl Serialize) -> Response {
    // Serialising strings and finite numbers does not fail.
    let json = serde_json::to_string(json).unwrap_or_default();
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A tokenizer like Llama 2's: pieces with a mark for the blank, and single bytes.
    fn llama() -> Tokenizer {
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

    /// A client compares the name of each token with that of the likeliest, to see whether it is greedy.
    #[test]
    fn every_token_keeps_its_own_score() {
        let tokenizer = llama();
        let score = |log_probability| TokenScore {
            log_probability,
            likeliest: vec![(3, -0.5), (4, -1.0), (1, -2.0), (7, -3.0)],
        };
        let mut logprobs = Logprobs::default();
        logprobs.push(&tokenizer, 4, Some(&score(-1.0)), 0);
        logprobs.push(&tokenizer, 2, Some(&score(-9.0)), 0);
        assert_eq!(logprobs.tokens, ["foo", "bytes:\\xe5"]);
        let json = serde_json::to_value(&logprobs.top_logprobs).unwrap();
        let likeliest = json!({ " foo": -0.5, "foo": -1.0, "\n": -2.0, "token_id:7": -3.0 });
        assert_eq!(json[0], likeliest);
        assert_eq!(json[1]["bytes:\\xe5"], -9.0);
        assert_eq!(json[1].as_object().unwrap().len(), 5);
    }
}
