//! Many clients, long texts, and ends.

use std::io::{Read, Write};
use std::net::TcpStream;
#[cfg(unix)]
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::greedy;
use crate::http::{Response, Server, post};
use crate::support::student_folder;
#[cfg(unix)]
use crate::{PROMPT, teacher};

/// A request for a text without end, since the student never ends a text. It runs until the connection is
/// closed.
fn endless(server: &Server) -> TcpStream {
    let body =
        json!({"prompt": "x", "max_tokens": 1_000_000_000, "temperature": 0, "stream": true});
    let mut stream = server.connect();
    stream
        .write_all(post(&body.to_string(), "").as_bytes())
        .unwrap();
    stream
}

/// Waits until a condition holds, for five minutes at most.
#[track_caller]
pub fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(300), "it does not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_closed_connection_frees_its_place() {
    let student = student_folder(&[]);
    let arguments = ["--slots", "1", "--queue", "1", "--max-tokens", "1000000000"];
    let server = Server::start(student.path(), &arguments);
    let running = || server.metric("infer_sequences_running");
    let waiting = || server.metric("infer_sequences_waiting");

    let first = endless(&server);
    until(|| running() == 1.0 && server.metric("infer_generated_tokens_total") > 3.0);
    let second = endless(&server);
    until(|| waiting() == 1.0);
    let response = server.post(greedy("x"));
    assert_eq!(response.status, 429);
    assert!(
        response.headers.contains("retry-after: 1"),
        "{}",
        response.headers
    );
    assert!(response.error().contains("try again"));
    let several = server.post(json!({"prompt": ["a", "b"]}));
    assert_eq!(several.status, 400, "more than can ever wait");

    // A client that leaves while it waits frees its place for the next.
    drop(second);
    until(|| waiting() == 0.0);
    let second = endless(&server);
    until(|| waiting() == 1.0);

    // While one runs another waits; when the first connection closes, the other starts.
    drop(first);
    until(|| running() == 1.0 && waiting() == 0.0);
    drop(second);
    until(|| running() == 0.0);
    // One that asks for the whole text at once and does not wait for it.
    let body = json!({"prompt": "x", "max_tokens": 1_000_000_000, "temperature": 0});
    let mut impatient = server.connect();
    impatient
        .write_all(post(&body.to_string(), "").as_bytes())
        .unwrap();
    until(|| running() == 1.0);
    drop(impatient);
    until(|| running() == 0.0);
    assert_eq!(
        server.complete(greedy("x"))["usage"]["completion_tokens"],
        8
    );
}

#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let student = student_folder(&[]);
    let arguments = ["--max-tokens", "1000000000"];
    let server = Server::start(student.path(), &arguments);
    let mut running = endless(&server);
    running.read_exact(&mut [0; 300]).unwrap();
    let long = json!({"prompt": vec![5; 60_000], "max_tokens": 1});
    let mut reading = server.connect();
    reading
        .write_all(post(&long.to_string(), "").as_bytes())
        .unwrap();
    until(|| server.metric("infer_prompt_tokens_total") > 1000.0);
    // Its prompt is read in pieces, and the other text grows by a token with each piece.
    let (read, made) = (
        server.metric("infer_prompt_tokens_total"),
        server.metric("infer_generated_tokens_total"),
    );
    until(|| server.metric("infer_generated_tokens_total") > made + 50.0);
    let read_meanwhile = server.metric("infer_prompt_tokens_total") - read;
    assert!(read_meanwhile <= 256.0 * 70.0, "{read_meanwhile}");
    assert_eq!(Response::read(reading).status, 200);
}

#[test]
fn the_time_limit_ends_a_text() {
    let student = student_folder(&[]);
    let arguments = ["--time-limit", "1", "--max-tokens", "1000000000"];
    let server = Server::start(student.path(), &arguments);
    let body = json!({"prompt": "x", "max_tokens": 1_000_000_000, "temperature": 0});
    let reply = server.complete(body);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 1_000_000_000);
}

#[test]
#[cfg(unix)]
fn a_server_that_a_signal_ends_finishes_its_requests() {
    for signal in ["-TERM", "-INT"] {
        let mut server = teacher();
        let body = json!({"prompt": PROMPT, "max_tokens": 600, "temperature": 0, "stream": true});
        let mut stream = server.connect();
        stream
            .write_all(post(&body.to_string(), "").as_bytes())
            .unwrap();
        let mut begun = [0; 1];
        stream.read_exact(&mut begun).unwrap();
        let pid = server.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
        assert!(rest.contains("data: [DONE]"));
        assert!(server.child.wait().unwrap().success());
    }
}
