//! Slow clients.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use datasets::Tokenizer;
use infer::engine::{Engine, EngineOptions};
use infer::precision::Precision;
use infer::serve::{ServedModel, ServerOptions, serve};
use kernels::runtime::Backend;
use serde_json::json;
use socket2::SockRef;

use crate::capacity::until;
use crate::http::{Response, connect, post};
use crate::support::teacher_folder;
use crate::{PROMPT, greedy};

/// The address of a server that waits no longer than `arrival`, which ends with this program.
fn impatient(arrival: Duration) -> String {
    serving(|options| {
        options.head_time = arrival;
        options.body_time = arrival;
    })
}

/// The address of a patient server with other options, which ends with this program.
pub fn serving(change: impl FnOnce(&mut ServerOptions)) -> String {
    let tokenizer = Arc::new(Tokenizer::from_folder(teacher_folder()).unwrap());
    let patience = Duration::from_secs(600);
    let mut options = ServerOptions {
        name: "tiny".into(),
        api_key: None,
        allowed_hosts: Vec::new(),
        max_tokens: 100,
        time_limit: patience,
        body_limit: 100_000,
        reply_limit: 128 << 20,
        connections_per_address: 256,
        head_time: patience,
        body_time: patience,
        write_time: patience,
        grace: patience,
    };
    change(&mut options);
    let engine = Engine::start(EngineOptions {
        backend: Backend::Flex,
        precision: Precision::Auto,
        model: teacher_folder(),
        tokenizer: tokenizer.clone(),
        slots: 1,
        queue: 1,
    });
    let (engine, engine_thread) = engine.unwrap();
    let model = ServedModel {
        engine,
        engine_thread,
        tokenizer,
        chat: Err("no chat".to_owned()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let never = std::future::pending();
        runtime
            .block_on(serve(model, options, listener, never))
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

/// Bodies need memory before the engine can refuse them. Only bytes that arrive count, not those that are only
/// announced.
#[test]
fn there_is_room_for_so_many_bodies() {
    let address = impatient(Duration::from_secs(600));
    let long = post(&" ".repeat(100_000), "");
    let short = post(&greedy(PROMPT).to_string(), "");
    let ask = || {
        let mut stream = connect(&address);
        stream.write_all(short.as_bytes()).unwrap();
        Response::read(stream)
    };
    let mut arriving: Vec<_> = (0..16).map(|_| connect(&address)).collect();
    let (head, body) = long.as_bytes().split_at(long.len() - 100_000);
    for stream in &mut arriving {
        stream.write_all(head).unwrap();
    }
    assert_eq!(ask().status, 200);
    for stream in &mut arriving {
        stream.write_all(&body[1..]).unwrap();
    }
    let all = 16.0 * 98.0 * 1024.0;
    until(|| metric(&address, "infer_arriving_bytes") == Some(all));
    let refused = ask();
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains("retry-after: 1"));
    assert!(refused.error().contains("try again"));
    drop(arriving);
    until(|| ask().status == 200);
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The value of a metric of the server at this address.
fn metric(address: &str, name: &str) -> Option<f64> {
    let mut stream = connect(address);
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let page = Response::read(stream).body;
    let mut values = page
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    values.next_back()
}

#[test]
fn idle_connections_keep_nobody_out() {
    let address = impatient(Duration::from_secs(600));
    let mut idle: Vec<_> = (0..700).map(|_| connect(&address)).collect();
    for stream in idle.iter_mut().step_by(2) {
        // Some have sent a part of a head, unless they were closed already.
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHo");
    }
    let mut honest = connect(&address);
    honest.write_all(HEALTH).unwrap();
    assert_eq!(Response::read(honest).status, 200);
    // The oldest connections were closed, and the newest are open.
    assert!(matches!(idle[0].read(&mut [0; 1]), Ok(0) | Err(_)));
    let newest = idle.last_mut().unwrap();
    newest.write_all(HEALTH).unwrap();
    assert_eq!(Response::read(idle.pop().unwrap()).status, 200);
    assert!(metric(&address, "infer_connections").unwrap() <= 256.0);
    let closed = metric(
        &address,
        "infer_connections_closed_total{reason=\"made_room\"}",
    );
    assert!(closed.unwrap() > 400.0, "{closed:?}");
}

#[test]
fn an_address_has_so_many_busy_connections() {
    let address = serving(|options| options.connections_per_address = 3);
    let endless = json!({"prompt": "x", "max_tokens": 100, "n": 1, "stream": true});
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = connect(&address);
            let request = post(&endless.to_string(), "");
            stream
                .write_all(&request.as_bytes()[..request.len() - 1])
                .unwrap();
            stream
        })
        .collect();
    // The server waits for their bodies, so they are not busy and can be closed to make room.
    for _ in 0..5 {
        let mut stream = connect(&address);
        stream.write_all(HEALTH).unwrap();
        assert_eq!(Response::read(stream).status, 200);
    }
    drop(busy);
}

/// A request for the echo of so many ids with scores that its reply does not fit into the sockets' buffers.
fn echo(tokens: usize) -> String {
    let body = json!({"prompt": vec![5; tokens], "max_tokens": 0, "echo": true, "logprobs": 20});
    post(&body.to_string(), "")
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let address = serving(|options| options.write_time = Duration::from_millis(300));
    let mut deaf = connect(&address);
    deaf.write_all(echo(2048).as_bytes()).unwrap();
    let closed = || {
        metric(
            &address,
            "infer_connections_closed_total{reason=\"not_reading\"}",
        )
    };
    until(|| closed() == Some(1.0));
    // The reply that the client did not read was dropped, and its connection was closed.
    until(|| metric(&address, "infer_connections") == Some(1.0));
    let mut all = Vec::new();
    assert!(deaf.read_to_end(&mut all).is_err(), "{} bytes", all.len());
}

/// A client that takes something from time to time, but too little for a reply that holds room.
#[test]
fn a_slow_reader_of_a_large_reply_is_cut() {
    let address = serving(|options| options.write_time = Duration::from_secs(3));
    let mut slow = connect(&address);
    SockRef::from(&slow)
        .set_recv_buffer_size(16 * 1024)
        .unwrap();
    slow.write_all(echo(2048).as_bytes()).unwrap();
    let mut bytes = [0; 256];
    let mut all = Vec::new();
    // At most 25 KiB a second.
    while let Ok(n @ 1..) = slow.read(&mut bytes) {
        all.extend_from_slice(&bytes[..n]);
        thread::sleep(Duration::from_millis(10));
    }
    let head = String::from_utf8_lossy(&all[..300]).to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split('\r').next().unwrap().parse().unwrap();
    assert!(all.len() < length, "{} of {length} bytes", all.len());
    until(|| metric(&address, "infer_reply_bytes") == Some(0.0));
}

/// Replies that nobody reads, all of one address, until there is no room for another.
#[test]
fn an_address_takes_half_of_the_room_for_replies() {
    let limit = 5 << 20;
    let address = serving(|options| options.reply_limit = limit);
    let mut deaf = Vec::new();
    let refused = (0..20).any(|_| {
        let mut stream = connect(&address);
        stream.write_all(echo(2048).as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.peek(&mut status).unwrap();
        deaf.push(stream);
        status == *b"HTTP/1.1 429"
    });
    assert!(refused);
    let held = metric(&address, "infer_reply_bytes").unwrap();
    assert!(held > 0.0 && held <= 2.0 * limit as f64, "{held}");
    drop(deaf);
    until(|| metric(&address, "infer_reply_bytes") == Some(0.0));
}

#[test]
fn the_reply_of_a_patient_reader_is_whole() {
    let address = serving(|_| {});
    let mut reader = connect(&address);
    reader.write_all(echo(2048).as_bytes()).unwrap();
    let response = Response::read(reader);
    assert_eq!(response.status, 200);
    let length = format!("content-length: {}\r\n", response.body.len());
    assert!(response.headers.contains(&length), "{}", response.headers);
    let tokens = &response.json()["choices"][0]["logprobs"]["tokens"];
    assert_eq!(tokens.as_array().unwrap().len(), 2048);
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for() {
    let address = impatient(Duration::from_millis(300));
    for part in ["", "POST /v1/completions HTTP/1.1\r\nHost:"] {
        let mut stream = connect(&address);
        stream.write_all(part.as_bytes()).unwrap();
        // The server closes the connection.
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}
