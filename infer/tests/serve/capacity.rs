//! Many clients, long texts, and stops.

use std::io::{Read, Write};
use std::net::TcpStream;
#[cfg(unix)]
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::{Response, Server, post};
use crate::support::student_folder;
#[cfg(unix)]
use crate::support::teacher_folder;
#[cfg(unix)]
use crate::{PROMPT, teacher};
use crate::{greedy, with};

/// Arguments of a server that makes texts without end.
const UNBOUNDED: [&str; 4] = [
    "--max-tokens",
    "1000000000",
    "--reply-limit",
    "1000000000000",
];

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
    let arguments = [&UNBOUNDED[..], &["--slots", "1", "--queue", "1"]].concat();
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
    // A client that asks for the whole text in one reply, and does not wait for it.
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
    let server = Server::start(student.path(), &UNBOUNDED);
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
    let arguments = [&UNBOUNDED[..], &["--time-limit", "1"]].concat();
    let server = Server::start(student.path(), &arguments);
    let body = json!({"prompt": "x", "max_tokens": 1_000_000_000, "temperature": 0});
    let reply = server.complete(body);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 1_000_000_000);
}

/// A single text gets a slot as soon as one of the many texts is done.
#[test]
fn one_request_with_many_texts_does_not_keep_others_out() {
    let student = student_folder(&[]);
    let arguments = [&UNBOUNDED[..], &["--slots", "3"]].concat();
    let server = Server::start(student.path(), &arguments);
    let many = json!({"prompt": "x", "max_tokens": 300, "n": 100, "stream": true});
    let mut running = server.connect();
    running
        .write_all(post(&many.to_string(), "").as_bytes())
        .unwrap();
    until(|| server.metric("infer_sequences_running") == 3.0);
    assert_eq!(
        server.complete(greedy("x"))["usage"]["completion_tokens"],
        8
    );
    assert!(server.metric("infer_sequences_waiting") > 50.0);
}

/// With one slot, one text is made until its time is up, and two never begin.
#[test]
fn when_the_time_is_up_what_is_done_is_answered() {
    let student = student_folder(&[]);
    let arguments = [
        "--slots",
        "1",
        "--time-limit",
        "2",
        "--max-tokens",
        "100000",
    ];
    let server = Server::start(student.path(), &arguments);
    let body = json!({"prompt": "x", "max_tokens": 100_000, "n": 3, "temperature": 0});
    let check = |choices: &[serde_json::Value]| {
        assert!(
            choices
                .iter()
                .all(|choice| choice["finish_reason"] == "length")
        );
        assert_ne!(choices[0]["text"], "");
        assert_eq!(
            (&choices[1]["text"], &choices[2]["text"]),
            (&json!(""), &json!(""))
        );
    };
    let reply = server.complete(body.clone());
    check(reply["choices"].as_array().unwrap());
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() > 1);
    let events = server.post(with(body, json!({"stream": true}))).events();
    let ends = events
        .iter()
        .filter(|event| !event["choices"][0]["finish_reason"].is_null());
    let mut ended: Vec<_> = ends
        .map(|event| event["choices"][0]["index"].as_u64().unwrap())
        .collect();
    ended.sort();
    assert_eq!(ended, [0, 1, 2]);
    // If scores are missing, `logprobs` is null, and not a shorter list.
    let scored = json!({"prompt": "x y z", "max_tokens": 5_000, "n": 2, "temperature": 0, "echo": true, "logprobs": 1});
    let reply = server.complete(scored);
    check(
        &[
            &reply["choices"].as_array().unwrap()[..],
            &[json!({"text": "", "finish_reason": "length"})],
        ]
        .concat(),
    );
    assert!(reply["choices"][0]["logprobs"].is_object());
    assert!(reply["choices"][1]["logprobs"].is_null());
}

/// For a request whose time is up before it has begun, nothing is computed.
#[test]
fn a_request_that_never_begins_is_an_error() {
    let student = student_folder(&[]);
    let arguments = [&UNBOUNDED[..], &["--slots", "1", "--time-limit", "2"]].concat();
    let server = Server::start(student.path(), &arguments);
    let running = endless(&server);
    until(|| server.metric("infer_generated_tokens_total") > 1.0);
    let asked = json!({"prompt": ["a", "b"], "max_tokens": 1, "echo": true});
    let response = server.post(&asked);
    // Unless the slot was free a moment before its time was up.
    if response.status != 200 {
        assert_eq!(response.status, 503);
        assert!(response.error().contains("before the text could begin"));
    }
    drop(running);
}

/// Clients that do not read, or that send nothing, do not delay the stop.
#[test]
#[cfg(unix)]
fn a_stop_ends_whatever_clients_do() {
    let student = student_folder(&[]);
    let arguments = [&UNBOUNDED[..], &["--grace", "2"]].concat();
    let mut server = Server::start(student.path(), &arguments);
    let idle = server.connect();
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost:")
        .unwrap();
    let mut bodiless = server.connect();
    let request = post("{}", "");
    bodiless
        .write_all(&request.as_bytes()[..request.len() - 1])
        .unwrap();
    let deaf = endless(&server);
    until(|| server.metric("infer_generated_tokens_total") > 100.0);
    let mut reading = endless(&server);
    reading.read_exact(&mut [0; 300]).unwrap();
    server.signal("-TERM");
    // What was made is sent.
    let mut rest = String::new();
    reading.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert!(rest.contains("data: [DONE]"));
    assert!(server.child.wait().unwrap().success());
    drop((idle, half, bodiless, deaf));
}

/// The program is started with ignored signals, as by `nohup` and in the background of a script.
#[test]
#[cfg(unix)]
fn a_signal_that_was_ignored_at_the_start_is_ignored() {
    let mut shell = Command::new("sh");
    let script = "trap '' INT HUP; exec \"$0\" \"$@\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_infer")]);
    let mut server = Server::start_by(shell, &teacher_folder(), &[]);
    for signal in ["-INT", "-HUP", "-INT"] {
        server.signal(signal);
        assert_eq!(server.text(greedy(PROMPT)), crate::CONTINUATION);
    }
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
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
        // Twice, as `timeout` does: that is one request.
        server.signal(signal);
        server.signal(signal);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
        assert!(rest.contains("data: [DONE]"));
        assert!(server.child.wait().unwrap().success());
    }
}
