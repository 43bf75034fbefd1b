use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use proptest::prelude::*;
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

/// Any JSON, not deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-1.0..3.0).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A value that a field may well have.
fn plausible(field: &'static str) -> BoxedStrategy<Value> {
    let number = |range: std::ops::Range<f64>| range.prop_map(Value::from).boxed();
    let id = 0_u32..5000;
    match field {
        "model" => Just(json!("tiny")).boxed(),
        "prompt" => prop_oneof![
            ".{0,40}".prop_map(Value::from),
            prop::collection::vec(".{0,9}", 0..4).prop_map(Value::from),
            prop::collection::vec(id.clone(), 0..9).prop_map(Value::from),
            prop::collection::vec(prop::collection::vec(id, 0..4), 0..4)
                .prop_map(|lists| json!(lists)),
        ]
        .boxed(),
        "stop" => prop::collection::vec(".{0,5}", 0..5)
            .prop_map(Value::from)
            .boxed(),
        "temperature" | "top_p" | "min_p" | "repetition_penalty" => number(0.0..1.5),
        "echo" | "stream" => any::<bool>().prop_map(Value::from).boxed(),
        "stream_options" => Just(json!({"include_usage": true})).boxed(),
        _ => (-1_i64..9).prop_map(Value::from).boxed(),
    }
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

/// A body with some fields, most of them as they should be.
fn any_body() -> impl Strategy<Value = Value> {
    let field = prop::sample::select(&FIELDS[..]).prop_flat_map(|field| {
        let value = prop_oneof![5 => plausible(field), 1 => any_json()];
        (Just(field.to_owned()), value)
    });
    prop::collection::vec(field, 0..6)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

/// Bytes that may be a body: JSON, JSON with damage, or anything.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let body = || any_body().prop_map(|body| body.to_string().into_bytes());
    let damage = (any::<prop::sample::Index>(), any::<u8>());
    let damaged = (body(), prop::collection::vec(damage, 1..4));
    let damaged = damaged.prop_map(|(mut body, damage)| {
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        body
    });
    let cut = (body(), any::<prop::sample::Index>()).prop_map(|(mut body, place)| {
        body.truncate(place.index(body.len()));
        body
    });
    prop_oneof![
        4 => body(),
        2 => damaged,
        1 => cut,
        1 => any_json().prop_map(|json| json.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

/// Any bytes give a plan within the limits or a client error.
#[test]
fn ten_thousand_bodies() {
    let tokenizer = tokenizer();
    let (plans, errors) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest::test_runner::TestRunner::new(config)
        .run(&any_bytes(), |body| {
            match planned(&tokenizer, &body) {
                Ok(plan) => {
                    plans.set(plans.get() + 1);
                    prop_assert!((1..=LIMITS.texts).contains(&plan.requests.len()));
                    for request in &plan.requests {
                        prop_assert!(request.max_tokens <= LIMITS.max_tokens);
                        prop_assert!(!request.prompt.is_empty());
                        prop_assert!(!request.stop.iter().any(String::is_empty));
                        prop_assert!(request.sampling.validate().is_ok());
                    }
                }
                Err(error) => {
                    errors.set(errors.get() + 1);
                    let message = error.to_json()["error"]["message"].clone();
                    prop_assert!(message.as_str().is_some_and(|text| !text.is_empty()));
                    prop_assert!(error.into_response().status().is_client_error());
                }
            }
            Ok(())
        })
        .unwrap();
    // Both results were tested.
    let (plans, errors) = (plans.get(), errors.get());
    assert!(
        plans > 1000 && errors > 1000,
        "{plans} plans, {errors} errors"
    );
}

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

/// The error of a body that was not encoded, and whose length is none of the server's.
fn refused_early(body: &[u8]) -> ApiError {
    read(body, "tiny", &LIMITS).unwrap_err()
}

/// Whatever the number or the length of what a body lists, it is refused before it is encoded, and in a
/// short message.
#[test]
fn a_body_cannot_ask_for_more_than_its_bytes() {
    let list =
        |element: &str, n: usize| format!("[{}{element}]", format!("{element},").repeat(n - 1));
    let many = 300_000;
    for (body, part) in [
        (
            format!("{{\"prompt\": {}}}", list("\"\"", many)),
            "more than 65536 prompts",
        ),
        (
            format!("{{\"prompt\": {}}}", list("[]", many)),
            "more than 65536 prompts",
        ),
        (
            format!("{{\"prompt\": {}}}", list("[5]", 65_536)),
            "65536 texts at once",
        ),
        (
            format!("{{\"stop\": {}}}", list("\"a\"", many)),
            "more than 16 stop strings",
        ),
        (
            format!("{{\"logit_bias\": {{\"a\": {}}}}}", list("[]", many)),
            "no logit_bias",
        ),
        (
            format!("{{\"prompt\": \"{}\"}}", "a".repeat(2001)),
            "2001 bytes; at most 2000 can be within the 500 positions",
        ),
        (
            format!("{{\"prompt\": [\"a\", \"{}\"]}}", "\u{e9}".repeat(1001)),
            "2002 bytes",
        ),
        (
            format!("{{\"temperature\": \"{}\"}}", "a".repeat(many)),
            "invalid type: string",
        ),
        (format!("{{\"{}\": 1}}", "a".repeat(many)), "unknown field"),
        (
            format!("{{\"model\": \"{}\"}}", "\u{e9}".repeat(many)),
            "does not exist",
        ),
    ] {
        let error = refused_early(body.as_bytes());
        let message = error.to_json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        let whole =
            message.contains(part) || (part == "does not exist" && message.ends_with("..."));
        assert!(whole, "{part}: {message}");
        assert!(message.len() <= 1003);
    }
    // As long as it may be.
    let fits = json!({"prompt": "a".repeat(2000)}).to_string();
    assert!(read(fits.as_bytes(), "tiny", &LIMITS).is_ok());
}

/// A few bytes cannot ask for a reply of gigabytes.
#[test]
fn a_reply_has_a_bound() {
    let ask = |limits: &Limits, body: Value| read(body.to_string().as_bytes(), "tiny", limits);
    let limits = Limits {
        max_tokens: 4096,
        texts: 256,
        positions: None,
        ..LIMITS
    };
    let most = json!({"n": 256, "max_tokens": 4096, "logprobs": 20});
    let error = ask(&limits, most.clone()).unwrap_err().to_json();
    assert_eq!(error["error"]["param"], "logprobs");
    let message = error["error"]["message"].as_str().unwrap();
    // 256 x 4096 tokens at 32 + 21 x 100 bytes, and 128 MiB.
    assert!(
        message.contains("2235564032 bytes") && message.contains("134217728"),
        "{message}"
    );
    // No text is longer than the positions, and without scores it is small.
    let short = Limits {
        positions: Some(200),
        ..limits.clone()
    };
    assert!(ask(&short, most).is_ok());
    let plain = ask(&limits, json!({"n": 256, "max_tokens": 4096})).unwrap();
    let plan = plain.plan(&tokenizer(), &limits, Instant::now(), &|| false);
    assert_eq!(plan.unwrap().reply_bytes, 256 * 4096 * 32);
}

#[test]
fn what_stops_the_encoding_is_said() {
    let request = read(b"{\"prompt\": \"a\"}", "tiny", &LIMITS).unwrap();
    let error = request
        .plan(&tokenizer(), &LIMITS, Instant::now(), &|| true)
        .unwrap_err();
    assert_eq!(error.to_json()["error"]["code"], "timeout");
    assert_eq!(
        error.into_response().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
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
