//! The server, from its clients' point of view.
#![cfg(feature = "flex")]

mod capacity;
mod chat;
mod completions;
mod hosts;
#[path = "../support/http.rs"]
mod http;
mod malformed;
mod refusals;
mod site;
mod slow;
#[path = "../support/mod.rs"]
mod support;

use http::Server;
use serde_json::{Value, json};
use support::teacher_folder;

const PROMPT: &str = "It was the best of times";
const PROMPT_IDS: [u32; 6] = [1931, 355, 260, 1283, 269, 1754];
const CONTINUATION: &str = " the past year, and the most important";

fn teacher() -> Server {
    Server::start(&teacher_folder(), &[])
}

fn greedy(prompt: impl Into<Value>) -> Value {
    json!({"prompt": prompt.into(), "max_tokens": 8, "temperature": 0})
}

/// `body` with more in it.
fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}
