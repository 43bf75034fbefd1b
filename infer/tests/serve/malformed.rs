//! Requests that are damaged anywhere: in the head, in the chunks of a body, in the body.

use std::io::{Read, Write};
use std::net::Shutdown;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::http::{connect, post};
use crate::slow::serving;

/// A number below `end`.
fn below(dice: &mut impl Rng, end: usize) -> usize {
    (dice.next_u64() % end as u64) as usize
}

/// Requests as they should be, most of them small.
fn requests() -> Vec<Vec<u8>> {
    let bodies = [
        json!({"prompt": "It was", "max_tokens": 1, "logprobs": 2, "echo": true}),
        json!({"prompt": ["a", "b"], "max_tokens": 1, "stream": true, "stop": ["x"]}),
        json!({"prompt": [[1, 2], [3]], "max_tokens": 1, "n": 1, "seed": 3}),
    ];
    let mut requests = Vec::new();
    for body in bodies.map(|body| body.to_string()) {
        requests.push(post(&body, "").into_bytes());
        let (first, rest) = body.split_at(9);
        let head = post("", "Transfer-Encoding: chunked\r\n").replace("Content-Length: 0\r\n", "");
        let chunks = format!(
            "9\r\n{first}\r\n{:x};e=1\r\n{rest}\r\n0\r\nT: x\r\n\r\n",
            rest.len()
        );
        requests.push((head + &chunks).into_bytes());
    }
    for path in [
        "/",
        "/v1/models",
        "/v1/models/tiny",
        "/health",
        "/page.js",
        "*",
        "http://localhost/",
    ] {
        let get =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n");
        requests.push(get.into_bytes());
    }
    requests
}

/// Parts of valid requests, and bytes that break them.
const PARTS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\xff",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.0",
    b"{\"",
    b"%ff",
    b"[[[[[[",
];

fn damage(dice: &mut impl Rng, request: &mut Vec<u8>) {
    for _ in 0..1 + below(dice, 3) {
        let place = below(dice, request.len().max(1)).min(request.len());
        match below(dice, 4) {
            0 => request.truncate(place.max(1)),
            1 => request
                .splice(
                    place..place,
                    PARTS[below(dice, PARTS.len())].iter().copied(),
                )
                .for_each(drop),
            2 => drop(request.drain(place..(place + 1 + below(dice, 8)).min(request.len()))),
            _ => {
                if let Some(byte) = request.get_mut(place) {
                    *byte = dice.next_u64() as u8;
                }
            }
        }
    }
}

/// Checks the responses in `bytes`, and counts the errors among them.
fn check(bytes: &[u8], request: &[u8]) -> usize {
    let text = String::from_utf8_lossy(bytes);
    let shown = || format!("{}\n{text}", String::from_utf8_lossy(request));
    let (mut rest, mut errors) = (&*text, 0);
    while !rest.is_empty() {
        assert!(rest.starts_with("HTTP/1."), "{}", shown());
        let (head, body) = rest
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{}", shown()));
        let head = head.to_ascii_lowercase();
        let status: u16 = head[9..12]
            .parse()
            .unwrap_or_else(|_| panic!("{}", shown()));
        assert!(status < 500, "{}", shown());
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
        // The last response may have no length: a stream, or an answer to HEAD, which has no body.
        let Some(length) = length.filter(|length| *length <= body.len()) else {
            return errors;
        };
        let (body, after) = body.split_at(length);
        if status >= 400 {
            errors += 1;
            assert!(head.contains("application/json"), "{}", shown());
            let json: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{}", shown()));
            assert!(json["error"]["message"].is_string(), "{}", shown());
        }
        rest = after;
    }
    errors
}

/// Any input is answered in HTTP, with errors in OpenAI's form, or gets no answer.
#[test]
fn three_thousand_damaged_requests() {
    let address = serving(|options| options.body_limit = 2000);
    let mut dice = Xoshiro256PlusPlus::seed_from_u64(5);
    let requests = requests();
    let mut errors = 0;
    for _ in 0..3000 {
        let mut request = requests[below(&mut dice, requests.len())].clone();
        damage(&mut dice, &mut request);
        let mut stream = connect(&address);
        let mut answer = Vec::new();
        // A server that has found an error may close the connection early.
        if stream.write_all(&request).is_ok() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = stream.read_to_end(&mut answer);
        errors += check(&answer, &request);
    }
    assert!(errors > 1000, "{errors} errors");
    let mut stream = connect(&address);
    stream.write_all(&requests[0]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
