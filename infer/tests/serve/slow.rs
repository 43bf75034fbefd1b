//! Slow clients.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use datasets::Tokenizer;
use infer::engine::{Engine, EngineOptions};
use infer::precision::Precision;
use infer::serve::{ServerOptions, serve};
use kernels::runtime::Backend;

use crate::capacity::until;
use crate::http::{Response, connect, post};
use crate::support::teacher_folder;
use crate::{PROMPT, greedy};

/// The address of a server that waits no longer than `arrival`, which ends with this program.
fn impatient(arrival: Duration) -> String {
    let tokenizer = Arc::new(Tokenizer::from_folder(teacher_folder()).unwrap());
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
        model: teacher_folder(),
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

/// Bodies take memory before the engine can say that there are too many.
#[test]
fn there_is_room_for_so_many_bodies() {
    let address = impatient(Duration::from_secs(600));
    let long = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Content-Type: application/json\r\nExpect: 100-continue\r\n\
                Content-Length: 100000\r\n\r\n";
    let send = || {
        let mut stream = connect(&address);
        stream.write_all(long.as_bytes()).unwrap();
        let mut beginning = [0; 12];
        stream.read_exact(&mut beginning).unwrap();
        (stream, beginning)
    };
    let arriving: Vec<_> = (0..16).map(|_| send()).collect();
    // The server asks for the rest of each.
    assert!(arriving.iter().all(|(_, it)| it == b"HTTP/1.1 100"));
    let short = post(&greedy(PROMPT).to_string(), "");
    let ask = || {
        let mut stream = connect(&address);
        stream.write_all(short.as_bytes()).unwrap();
        Response::read(stream)
    };
    let refused = ask();
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains("retry-after: 1"));
    assert!(refused.error().contains("try again"));
    drop(arriving);
    until(|| ask().status == 200);
}

#[test]
fn connections_wait_when_there_are_many() {
    let address = impatient(Duration::from_secs(600));
    // One slot, one place in the queue, and the spare ones.
    let idle: Vec<_> = (0..258).map(|_| connect(&address)).collect();
    let mut late = connect(&address);
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    late.write_all(request).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let waits = late.read(&mut [0; 1]).unwrap_err();
    assert!(
        [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&waits.kind()),
        "{waits}"
    );
    drop(idle);
    late.set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    assert_eq!(Response::read(late).status, 200);
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
