mod limits;
mod random_bodies;

use std::path::Path;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::*;
use crate::engine::TokenScore;
use crate::serve::request::TextPlan;
use crate::serve::token_name::tests::llama;

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    Tokenizer::from_folder(folder).unwrap()
}

const LIMITS: Limits = Limits {
    max_tokens: 100,
    texts: 8,
    prompt_bytes: Some(2000),
    positions: Some(500),
    reply_bytes: 128 << 20,
};

fn planned(tokenizer: &Tokenizer, body: &[u8]) -> Result<TextPlan, ApiError> {
    let request = read(body, "tiny", &LIMITS)?;
    request.plan(tokenizer, &LIMITS, Instant::now(), &|| false)
}

const FIELDS: [&str; 22] = [
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "n",
    "logprobs",
    "echo",
    "stream",
    "stream_options",
    "user",
    "best_of",
    "suffix",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "no_such_field",
];

/// The status and message that a body is refused with.
fn refused(body: Value) -> (StatusCode, String) {
    let error = planned(&tokenizer(), body.to_string().as_bytes()).unwrap_err();
    let message = error.to_json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    (error.into_response().status(), message)
}

#[test]
fn what_is_wrong_is_named() {
    for (body, part) in [
        (json!({"temperature": -1}), "temperature is -1"),
        (
            json!({"temperature": "hot"}),
            "invalid type: string \"hot\"",
        ),
        (json!({"top_p": 1.5}), "top_p is 1.5"),
        (json!({"top_k": -2}), "top_k is -2"),
        (json!({"n": 0}), "n is 0"),
        (json!({"n": 9}), "9 texts at once"),
        (
            json!({"prompt": ["a", "b", "c"], "n": 3}),
            "9 texts at once",
        ),
        (json!({"n": u64::MAX}), "at once"),
        (
            json!({"prompt": 5}),
            "expected prompt as a string, a list of strings",
        ),
        (json!({"prompt": []}), "prompt is an empty list"),
        (json!({"prompt": [-1]}), "expected prompt as"),
        (json!({"prompt": ["a", 1]}), "prompt must be"),
        (json!({"prompt": [["a"]]}), "prompt must be"),
        (json!({"prompt": {}}), "expected prompt as"),
        (json!({"prompt": [1, -1]}), "prompt must be"),
        (json!({"prompt": [1, 1_u64 << 32]}), "prompt must be"),
        (json!({"max_tokens": 0}), "echo only"),
        (json!({"max_tokens": 101}), "at most 100"),
        (json!({"max_tokens": -1}), "`max_tokens`: invalid value"),
        (json!({"n": 1.5}), "`n`: invalid type"),
        (json!({"logprobs": 21}), "logprobs is 21"),
        (json!({"stop": ""}), "empty"),
        (json!({"stop": vec!["a"; 17]}), "more than 16 stop strings"),
        (json!({"stop": 5}), "expected stop as a string or a list"),
        (json!({"logit_bias": 5}), "no logit_bias"),
        (json!({"stop": "a".repeat(1025)}), "longer than 1024"),
        (json!({"suffix": "end"}), "no suffix"),
        (json!({"best_of": 3}), "no best_of"),
        (json!({"presence_penalty": 0.5}), "no presence_penalty"),
        (json!({"logit_bias": {"5": 1}}), "no logit_bias"),
        (json!({"promt": "x"}), "unknown field `promt`"),
        (
            json!({"prompt": vec![5; 20_000], "n": 8, "echo": true, "logprobs": 20}),
            "160128 tokens (max_tokens for each prompt, and with echo the prompt, times n) with 21 scores",
        ),
        (json!([]), "a list and no object"),
        (json!("x"), "the body cannot be read"),
    ] {
        let (status, message) = refused(body.clone());
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(message.contains(part), "{body}: {message}");
    }
    let (status, message) = refused(json!({"model": "other"}));
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(message.contains("`other`") && message.contains("`tiny`"));
    assert!(planned(&tokenizer(), b"{\"prompt\": \"\xff\"}").is_err());
    assert!(planned(&tokenizer(), b"{\"prompt\": \"\\ud800\"}").is_err());
}

/// The message names the field with underscores, and not with the hyphens of the command line.
#[test]
fn a_setting_is_named_as_its_field() {
    for (field, value) in [
        ("repetition_penalty", 0.0),
        ("temperature", -1.0),
        ("top_p", 1.5),
        ("min_p", 1.5),
    ] {
        let body = json!({field: value}).to_string();
        let error = planned(&tokenizer(), body.as_bytes())
            .unwrap_err()
            .to_json();
        assert_eq!(error["error"]["param"], field);
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("{field} is {value}")),
            "{message}"
        );
    }
}

#[test]
fn what_is_left_out_is_openai_s_default() {
    let tokenizer = tokenizer();
    let nulls: Map<String, Value> = FIELDS[..21]
        .iter()
        .map(|field| (field.to_string(), Value::Null))
        .collect();
    for body in [json!({}), Value::Object(nulls)] {
        let plan = planned(&tokenizer, body.to_string().as_bytes()).unwrap();
        let [request] = &plan.requests[..] else {
            panic!("one text")
        };
        assert_eq!(request.max_tokens, 16);
        assert_eq!(request.sampling.temperature, 1.0);
        assert_eq!(request.sampling.top_p, 1.0);
        assert_eq!(request.alternatives, None);
        // A text that begins with nothing begins after an end-of-text.
        assert_eq!(*request.prompt, [tokenizer.end_of_text().unwrap()]);
        assert!(plan.echoes.is_none() && !plan.stream && !plan.stream_usage);
    }
    // Fields without effect are ignored.
    let neutral = json!({"best_of": 2, "n": 2, "suffix": "", "presence_penalty": 0,
        "frequency_penalty": 0.0, "logit_bias": {}, "user": "someone"});
    assert_eq!(
        planned(&tokenizer, neutral.to_string().as_bytes())
            .unwrap()
            .n,
        2
    );
}

#[test]
fn each_text_has_its_prompt_and_seed() {
    let tokenizer = tokenizer();
    let body = json!({"prompt": [[1, 2], [3]], "n": 2, "seed": 7, "echo": true, "logprobs": 0});
    let plan = planned(&tokenizer, body.to_string().as_bytes()).unwrap();
    let each = plan.requests.iter();
    let each: Vec<_> = each
        .map(|request| (request.prompt.to_vec(), request.sampling.seed))
        .collect();
    let expected = [(vec![1, 2], 7), (vec![1, 2], 8), (vec![3], 7), (vec![3], 8)];
    assert_eq!(each, expected);
    assert!(plan.requests.iter().all(|request| request.score_prompt));
    assert_eq!(plan.echoes.map(|echoes| echoes.len()), Some(2));
    let seed = || {
        planned(&tokenizer, b"{}").unwrap().requests[0]
            .sampling
            .seed
    };
    assert_ne!(seed(), seed());
}

/// A begin-of-text is the server's before a text, which does not show it, and the client's before ids.
#[test]
fn a_begin_of_text_is_read_and_not_shown() {
    let plain = tokenizer();
    let text = "It was the best of times";
    let ids = plain.encode(text).unwrap();
    let tokenizer = plain.with_beginning(vec![7], Some(7));
    let plan = |prompt: Value| {
        let body = json!({"prompt": prompt, "echo": true, "logprobs": 0}).to_string();
        planned(&tokenizer, body.as_bytes()).unwrap()
    };
    let of_text = plan(json!(text));
    assert_eq!(*of_text.requests[0].prompt, [&[7][..], &ids[..]].concat());
    let echoes = of_text.echoes.unwrap();
    let echo = &echoes[0];
    assert_eq!(echo.whole(), text);
    let starts = [0, 1, 2].map(|token| echo.characters_before(token));
    assert_eq!(starts, [0, 0, "It".len()]);
    assert_eq!(echo.characters_before(1 + ids.len()), text.len());

    assert_eq!(*plan(json!("")).requests[0].prompt, [7]);
    let of_ids = plan(json!(ids));
    assert_eq!(*of_ids.requests[0].prompt, ids);
    assert_eq!(of_ids.echoes.unwrap()[0].whole(), text);
}

/// A client compares the name of each token with that of the likeliest, to see whether it is greedy.
#[test]
fn every_token_keeps_its_own_score() {
    let tokenizer = llama();
    let score = |log_probability| TokenScore {
        log_probability,
        likeliest: vec![(3, -0.5), (4, -1.0), (1, -2.0), (7, -3.0)],
    };
    let token = |id, log_probability| ScoredToken {
        id,
        offset: 0,
        score: Some(score(log_probability)),
        is_end: false,
    };
    let logprobs = Logprobs::of(&tokenizer, vec![token(4, -1.0), token(2, -9.0)]);
    assert_eq!(logprobs.tokens, ["foo", "bytes:\\xe5"]);
    let json = serde_json::to_value(&logprobs.top_logprobs).unwrap();
    let likeliest = json!({ " foo": -0.5, "foo": -1.0, "\n": -2.0, "token_id:7": -3.0 });
    assert_eq!(json[0], likeliest);
    assert_eq!(json[1]["bytes:\\xe5"], -9.0);
    assert_eq!(json[1].as_object().unwrap().len(), 5);
}
