//! Refused requests, and the messages.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::capacity::until;
use crate::http::{Response, Server, post};
use crate::support::teacher_folder;
use crate::{CONTINUATION, PROMPT, greedy, teacher};

#[test]
fn what_is_wrong_is_an_error_of_openai_s() {
    let server = Server::start(&teacher_folder(), &["--body-limit", "20000"]);
    let refused = |response: Response, status: u16, part: &str| {
        let message = response.error();
        assert_eq!(response.status, status, "{message}");
        assert!(message.contains(part), "{message}");
    };
    refused(server.post("{"), 400, "the body cannot be read");
    refused(server.post(""), 400, "the body cannot be read");
    refused(
        server.post(json!({"temperature": -1})),
        400,
        "temperature is -1",
    );
    refused(server.post(json!({"prompt": [1, 4096]})), 400, "token 4096");
    refused(
        server.post(json!({"prompt": [4294967295_u32]})),
        400,
        "4294967295",
    );
    refused(
        server.post(json!({"prompt": vec![1; 2049]})),
        400,
        "positions for 2048",
    );
    refused(
        server.post(json!({"prompt": vec![1; 1_000_000]})),
        413,
        "20000 bytes",
    );
    refused(server.post(json!({"model": "gpt"})), 404, "`gpt`");
    refused(server.post(json!({"n": 1000})), 400, "1000 texts");
    refused(server.get("/nowhere"), 404, "/nowhere");
    refused(server.get("/v1/completions"), 405, "GET");
    refused(server.get("/v1/models/other"), 404, "`other`");
    let deep = "[".repeat(9000);
    refused(server.post(&deep), 400, "the body cannot be read");
    let untyped = post("{}", "").replace("application/json", "text/plain");
    refused(server.raw(untyped.as_bytes()), 415, "Content-Type");
    let mut not_utf8 = post("{\"prompt\": \"..\"}", "").into_bytes();
    let place = not_utf8.len() - 4;
    not_utf8[place] = 0xff;
    refused(server.raw(&not_utf8), 400, "the body cannot be read");
    // Without a length, and longer than the limit.
    let chunk = format!("4e20\r\n{}\r\n", "x".repeat(20_000));
    let chunked = post("", "Transfer-Encoding: chunked\r\n").replace("Content-Length: 0\r\n", "");
    let chunked = format!("{chunked}{chunk}{chunk}0\r\n\r\n");
    refused(server.raw(chunked.as_bytes()), 413, "20000 bytes");
    // Bodies that end early, or are not in chunks.
    let head = &chunked[..chunked.len() - 2 * chunk.len() - 5];
    for body in ["xyz\r\n{}\r\n0\r\n\r\n", "5\r\n{}"] {
        let broken = format!("{head}{body}");
        refused(
            server.half_closed(broken.as_bytes()),
            400,
            "ended too early, or its chunks",
        );
    }
    let short = post("{}", "").replace("Content-Length: 2", "Content-Length: 9");
    refused(server.half_closed(short.as_bytes()), 400, "ended too early");
    refused(server.get("/v1/models/%ff"), 400, "not UTF-8");
    // Not even HTTP, and too much of it.
    refused(server.raw(b"\x00\x01\x02 hello\r\n\r\n"), 400, "HTTP/1.1");
    let two = post("{}", "Content-Length: 3\r\n");
    refused(server.raw(two.as_bytes()), 400, "HTTP/1.1");
    let long = post("{}", &format!("X: {}\r\n", "x".repeat(100_000)));
    refused(server.raw(long.as_bytes()), 431, "65536 bytes");
    let many = post("{}", &"X: y\r\n".repeat(200));
    refused(server.raw(many.as_bytes()), 431, "100 headers");
    let bad = |code: u16| {
        server.metric(&format!(
            "infer_http_responses_total{{path=\"other\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(bad(431), 2.0);
    // The server still works as before.
    assert_eq!(server.text(greedy(PROMPT)), CONTINUATION);
    // A text reaches its reader before its place in the batch is free.
    until(|| server.metric("infer_sequences_running") == 0.0);
}

#[test]
fn a_key_opens_what_is_closed() {
    // A file or a variable may add white space around the key.
    let server = Server::start(&teacher_folder(), &["--api-key", " secret\n"]);
    let body = greedy(PROMPT).to_string();
    for headers in [
        "",
        "Authorization: Bearer secreT\r\n",
        "Authorization: secret\r\n",
        "Authorization: Basic secret\r\n",
        "Authorization: Bearersecret\r\n",
    ] {
        let response = server.raw(post(&body, headers).as_bytes());
        assert_eq!(response.status, 401);
        assert!(response.error().contains("Bearer"));
    }
    for scheme in ["Bearer", "bearer", "BEARER "] {
        let header = format!("Authorization: {scheme} secret\r\n");
        let response = server.raw(post(&body, &header).as_bytes());
        assert_eq!(response.json()["choices"][0]["text"], CONTINUATION);
    }
    for (path, status) in [
        ("/", 200),
        ("/health", 200),
        ("/v1/models", 401),
        ("/metrics", 401),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
}

/// An empty key is refused, because it would open the server.
#[test]
fn an_empty_key_is_an_error() {
    let refused = |arguments: &[&str], variable: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_infer"))
            .args(["serve", "--port", "0", "--model", "no/such/model/here"])
            .args(arguments)
            .env("INFER_API_KEY", variable)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    for (arguments, variable) in [
        (&["--api-key", ""][..], "secret"),
        (&[], ""),
        (&[], " "),
        (&["--api-key", "two\nlines"], "secret"),
    ] {
        let message = refused(arguments, variable);
        assert!(message.contains("the API key is empty"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let message = refused(&["--api-key", "secret"], "");
    assert!(message.contains("no/such/model/here"), "{message}");
}

#[test]
fn a_port_in_use_is_an_error() {
    let server = teacher();
    let port = server.address.rsplit_once(':').unwrap().1;
    let output = Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["serve", "--port", port, "--model"])
        .arg(teacher_folder())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message.starts_with("error: cannot listen on 127.0.0.1"),
        "{message}"
    );
    assert!(
        message.contains("--port") && message.lines().count() == 1,
        "{message}"
    );
}

#[test]
fn a_model_that_is_not_there_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["serve", "--port", "0", "--model", "no/such/model/here"])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("no/such/model/here"), "{message}");
}
