//! What limits a request: the lengths of its lists and texts, the bytes of its reply, and the time of its encoding.

use std::time::Instant;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::{ApiError, LIMITS, Limits, read, tokenizer};

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
