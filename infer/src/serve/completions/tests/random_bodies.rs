//! Random bodies: whatever the bytes are, they give a plan within the limits or a client error.

use std::cell::Cell;

use axum::response::IntoResponse;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{FIELDS, LIMITS, planned, tokenizer};

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
