use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::*;
use crate::engine::TokenScore;
use crate::serve::request::TextPlan;
use crate::serve::token_name::tests::llama;

const LIMITS: Limits = Limits {
    max_tokens: 100,
    texts: 8,
    prompt_bytes: Some(2000),
    positions: Some(500),
    reply_bytes: 128 << 20,
};

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\
                        <|endoftext|>{% if message.content == 'no' %}{{ raise_exception('Not no.') }}\
                        {% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn template() -> ChatTemplate {
    ChatTemplate::new(TEMPLATE, BTreeMap::new()).unwrap()
}

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    Tokenizer::from_folder(folder).unwrap()
}

fn planned(body: &[u8]) -> Result<TextPlan, ApiError> {
    let request = read(body, "tiny", Ok(&template()), &LIMITS)?;
    request.plan(&tokenizer(), &LIMITS, Instant::now(), &|| false)
}

/// A body with one message, and `more`.
fn ask(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[test]
fn messages_become_a_prompt() {
    let prompt = |messages: Value| {
        let plan = planned(json!({ "messages": messages }).to_string().as_bytes()).unwrap();
        tokenizer().decode(&plan.requests[0].prompt).unwrap()
    };
    let user = |content: Value| json!({"role": "user", "content": content});
    let hi = "<user>Hi<|endoftext|><assistant>";
    assert_eq!(prompt(json!([user(json!("Hi"))])), hi);
    let parts = json!([{"type": "text", "text": "Hi"}]);
    assert_eq!(prompt(json!([user(parts)])), hi);
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(
        prompt(json!([user(parts)])),
        "<user>a\nb<|endoftext|><assistant>"
    );
    // An answer of OpenAI's, sent back as it came.
    let answer = json!({"role": "assistant", "content": "Ho", "refusal": null, "annotations": [],
        "audio": null, "function_call": null, "tool_calls": null});
    let system = json!({"role": "developer", "content": "Be."});
    assert_eq!(
        prompt(json!([system, user(json!("Hi")), answer])),
        "<system>Be.<|endoftext|><user>Hi<|endoftext|><assistant>Ho<|endoftext|><assistant>"
    );
    // The name of a special token becomes that token, also where a user wrote it.
    let body = ask(json!({"messages": [user(json!("<|endoftext|>"))]}));
    let plan = planned(body.to_string().as_bytes()).unwrap();
    let ends = plan.requests[0].prompt.iter().filter(|&&id| id == 0);
    assert_eq!(ends.count(), 2);
}

#[test]
fn what_is_left_out_is_openai_s_default() {
    let plan = planned(ask(json!({})).to_string().as_bytes()).unwrap();
    let [request] = &plan.requests[..] else {
        panic!("one text")
    };
    assert_eq!(request.max_tokens, LIMITS.max_tokens);
    assert_eq!(request.sampling.temperature, 1.0);
    assert_eq!((request.alternatives, request.score_prompt), (None, false));
    assert!(plan.echoes.is_none() && !plan.stream);
    // Fields without effect are ignored.
    let neutral = json!({"tools": [], "tool_choice": "none", "functions": null, "store": false,
        "response_format": {"type": "text"}, "modalities": ["text"], "metadata": {"a": "b"},
        "parallel_tool_calls": true, "service_tier": "auto", "user": "someone", "logit_bias": {},
        "presence_penalty": 0, "reasoning_effort": null, "verbosity": "medium", "logprobs": false,
        "top_logprobs": 0, "stream": true, "stream_options": {"include_usage": true}});
    let plan = planned(ask(neutral).to_string().as_bytes()).unwrap();
    assert!(plan.stream && plan.stream_usage);
    let tokens = |more| planned(ask(more).to_string().as_bytes()).unwrap().requests[0].max_tokens;
    assert_eq!(tokens(json!({"max_tokens": 7})), 7);
    assert_eq!(tokens(json!({"max_completion_tokens": 8})), 8);
    assert_eq!(
        tokens(json!({"max_completion_tokens": 9, "max_tokens": 9})),
        9
    );
    let scores = |more| planned(ask(more).to_string().as_bytes()).unwrap().requests[0].alternatives;
    assert_eq!(scores(json!({"logprobs": true})), Some(0));
    assert_eq!(
        scores(json!({"logprobs": true, "top_logprobs": 3})),
        Some(3)
    );
}

#[test]
fn what_is_wrong_is_named() {
    let messages = |messages: Value| json!({ "messages": messages });
    let content = |content: Value| messages(json!([{"role": "user", "content": content}]));
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    let field = |field: &str, value: Value| ask(json!({ field: value }));
    let unsupported = "Unsupported parameter: '";
    for (body, param, part) in [
        (json!({}), "messages", "messages is empty or missing"),
        (messages(json!([])), "messages", "messages is empty"),
        (messages(json!("Hi")), "", "messages as a list"),
        (
            messages(json!([{"content": "Hi"}])),
            "",
            "missing field `role`",
        ),
        (
            messages(json!([{"role": "user"}])),
            "messages",
            "messages[0].content is missing",
        ),
        (
            messages(json!([{"role": "user", "content": "", "x": 1}])),
            "",
            "unknown field `x`",
        ),
        (
            messages(json!([{"role": "tool", "content": ""}])),
            "messages",
            "messages[0].role is `tool`",
        ),
        (content(json!(5)), "", "content as a string or a list"),
        (
            content(image),
            "messages",
            "messages[0].content[0].type is `image_url`",
        ),
        (
            content(json!([{"type": "text"}])),
            "messages",
            "content[0].text is missing",
        ),
        (
            content(json!("no")),
            "messages",
            "refuses these messages: Not no.",
        ),
        (
            content(json!("x".repeat(3000))),
            "messages",
            "at most 2000 can be within",
        ),
        (
            messages(json!([{"role": "assistant", "content": "", "tool_calls": [{}]}])),
            "messages",
            "messages[0].tool_calls is not supported",
        ),
        (
            field("tools", json!([{"type": "function"}])),
            "tools",
            unsupported,
        ),
        (
            field("tool_choice", json!("required")),
            "tool_choice",
            unsupported,
        ),
        (
            field("tool_choice", json!({"type": "function"})),
            "tool_choice",
            unsupported,
        ),
        (field("functions", json!([{}])), "functions", unsupported),
        (field("audio", json!({"voice": "x"})), "audio", unsupported),
        (field("store", json!(true)), "store", unsupported),
        (
            field("reasoning_effort", json!("low")),
            "reasoning_effort",
            unsupported,
        ),
        (
            field("web_search_options", json!({"x": 1})),
            "web_search_options",
            unsupported,
        ),
        (
            field(
                "response_format",
                json!({"type": "json_schema", "json_schema": {}}),
            ),
            "response_format",
            "Unsupported value: 'response_format' does not support 'json_schema'",
        ),
        (
            field("modalities", json!(["text", "audio"])),
            "modalities",
            "does not support 'audio'",
        ),
        (
            field("presence_penalty", json!(1)),
            "presence_penalty",
            "no presence_penalty",
        ),
        (
            field("logit_bias", json!({"5": 1})),
            "logit_bias",
            "no logit_bias",
        ),
        (
            field("max_tokens", json!(0)),
            "max_tokens",
            "must be at least 1",
        ),
        (field("max_tokens", json!(101)), "max_tokens", "at most 100"),
        (
            field("max_completion_tokens", json!(101)),
            "max_completion_tokens",
            "at most 100",
        ),
        (
            ask(json!({"max_tokens": 1, "max_completion_tokens": 2})),
            "max_tokens",
            "give one",
        ),
        (
            field("top_logprobs", json!(2)),
            "top_logprobs",
            "needs logprobs",
        ),
        (
            ask(json!({"logprobs": true, "top_logprobs": 21})),
            "top_logprobs",
            "20 at most",
        ),
        (field("logprobs", json!(3)), "", "invalid type: integer"),
        (field("n", json!(0)), "n", "n is 0"),
        (field("n", json!(9)), "n", "9 texts at once"),
        (
            field("temperature", json!(-1)),
            "temperature",
            "temperature is -1",
        ),
        (field("prompt", json!("Hi")), "", "unknown field `prompt`"),
        (field("echo", json!(true)), "", "unknown field `echo`"),
        (json!([]), "", "a list and no object"),
    ] {
        let error = planned(body.to_string().as_bytes()).unwrap_err();
        let error = error.with_prompt(Chat::PROMPT);
        let json = error.to_json()["error"].clone();
        assert_eq!(
            json["param"].as_str().unwrap_or(""),
            param,
            "{body}: {json}"
        );
        let message = json["message"].as_str().unwrap();
        assert!(message.contains(part), "{body}: {message}");
        assert_eq!(error.into_response().status(), StatusCode::BAD_REQUEST);
    }
    let code = |body: Value| {
        let error = planned(body.to_string().as_bytes()).unwrap_err();
        error.to_json()["error"]["code"].clone()
    };
    assert_eq!(code(field("tools", json!([{}]))), "unsupported_parameter");
    assert_eq!(code(field("modalities", json!(["x"]))), "unsupported_value");
    assert_eq!(
        code(content(json!("x".repeat(3000)))),
        "context_length_exceeded"
    );
    let many = format!(
        "{{\"messages\": [{}",
        "{\"role\": \"user\", \"content\": \"\"},".repeat(70_000)
    );
    let error = planned(many.as_bytes()).unwrap_err().to_json();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("more than 65536 messages")
    );
}

#[test]
fn a_model_without_a_template_says_so() {
    let error = read(
        ask(json!({})).to_string().as_bytes(),
        "tiny",
        Err("no chat"),
        &LIMITS,
    );
    let error = error.unwrap_err();
    assert_eq!(error.to_json()["error"]["message"], "no chat");
    assert_eq!(error.to_json()["error"]["code"], "no_chat_template");
    assert_eq!(error.into_response().status(), StatusCode::BAD_REQUEST);
}

#[test]
fn scores_are_openai_s() {
    let tokenizer = llama();
    let token = |id, is_end| ScoredToken {
        id,
        offset: 0,
        score: Some(TokenScore {
            log_probability: f64::NEG_INFINITY,
            likeliest: vec![(3, -0.5), (2, -1.0)],
        }),
        is_end,
    };
    let logprobs = Logprobs::of(&tokenizer, vec![token(4, false), token(0, true)]);
    let foo = json!({"token": "foo", "logprob": -9999.0, "bytes": [102, 111, 111], "top_logprobs": [
        {"token": " foo", "logprob": -0.5, "bytes": [32, 102, 111, 111]},
        {"token": "bytes:\\xe5", "logprob": -1.0, "bytes": [0xe5]},
    ]});
    let expected = json!({"content": [foo], "refusal": null});
    assert_eq!(serde_json::to_value(&logprobs).unwrap(), expected);
}

/// Any bytes give a plan within the limits or a client error.
#[test]
fn ten_thousand_bodies() {
    let whole = ask(
        json!({"max_tokens": 5, "n": 2, "stop": ["a"], "logprobs": true, "top_logprobs": 2,
        "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5, "tools": [],
        "response_format": {"type": "text"}, "messages": [{"role": "system", "content": "Be"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "A"}]}),
    );
    let whole = whole.to_string();
    let (template, tokenizer) = (template(), tokenizer());
    let (mut plans, mut errors) = (0, 0);
    ::tests::mutations::each(10_000, |mutator| {
        let body = mutator.json(&whole);
        let plan = read(body.as_ref(), "tiny", Ok(&template), &LIMITS)
            .and_then(|request| request.plan(&tokenizer, &LIMITS, Instant::now(), &|| false));
        match plan {
            Ok(plan) => {
                plans += 1;
                assert!((1..=LIMITS.texts).contains(&plan.requests.len()));
                assert!(
                    plan.requests
                        .iter()
                        .all(|request| request.max_tokens <= LIMITS.max_tokens)
                );
            }
            Err(error) => {
                errors += 1;
                assert!(error.into_response().status().is_client_error());
            }
        }
    });
    assert!(
        plans > 500 && errors > 500,
        "{plans} plans, {errors} errors"
    );
}
