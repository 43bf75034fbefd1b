//! Clients that take their time.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use datasets::Tokenizer;
use infer::engine::{Engine, EngineOptions};
use infer::precision::Precision;
use infer::serve::{ServerOptions, serve};
use kernels::backends::Backend;

use crate::http::{Response, connect, post};
use crate::{PROMPT, folders, greedy};

/// The address of a server that waits no longer than `arrival`, which ends with this program.
fn impatient(arrival: Duration) -> String {
    let tokenizer = Arc::new(Tokenizer::from_folder(folders::teacher()).unwrap());
    let options = ServerOptions {
        name: "tiny".into(),
        api_key: None,
        max_tokens: 100,
        time_limit: Duration::from_secs(600),
        body_limit: 100_000,
        head_time: arrival,
        body_time: arrival,
    };
    let engine = Engine::start(EngineOptions {
        backend: Backend::Flex,
        precision: Precision::Auto,
        model: folders::teacher(),
        tokenizer: tokenizer.clone(),
        slots: 1,
        queue: 1,
    });
    let engine = engine.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let never = std::future::pending();
        runtime
            .block_on(serve(engine, tokenizer, options, listener, never))
            .unwrap();
    });
    address
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let address = impatient(Duration::from_millis(300));
    let mut stream = connect(&address);
    let request = post(&greedy(PROMPT).to_string(), "");
    let part = &request.as_bytes()[..request.len() - 5];
    stream.write_all(part).unwrap();
    let response = Response::read(stream);
    assert_eq!(response.status, 408);
    assert!(response.error().contains("too long to arrive"));
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for() {
    let address = impatient(Duration::from_millis(300));
    for part in ["", "POST /v1/completions HTTP/1.1\r\nHost:"] {
        let mut stream = connect(&address);
        stream.write_all(part.as_bytes()).unwrap();
        // It hangs up.
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}
