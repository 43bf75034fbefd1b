//! The hosts and sites that the server answers.

use crate::http::{Server, post};
use crate::support::teacher_folder;
use crate::{CONTINUATION, PROMPT, greedy};

#[test]
fn only_its_own_hosts_and_pages_are_answered() {
    let server = Server::start(&teacher_folder(), &["--allowed-host", "models.example"]);
    let address = &*server.address;
    let ask = |host: &str, more: &str| {
        let request = post(&greedy(PROMPT).to_string(), more);
        let host = format!("Host: {host}\r\n");
        server.raw(request.replace("Host: localhost\r\n", &host).as_bytes())
    };
    let own_page = format!("Origin: http://{address}\r\n");
    for (host, more) in [
        ("localhost", ""),
        (address, ""),
        (address, &own_page),
        ("models.example", "Origin: https://models.example\r\n"),
    ] {
        let reply = ask(host, more);
        assert_eq!(reply.json()["choices"][0]["text"], CONTINUATION, "{host}");
    }
    for (host, more, part) in [
        ("evil.example", "", "--allowed-host evil.example"),
        (
            "evil.example",
            "Origin: http://evil.example\r\n",
            "--allowed-host",
        ),
        (address, "Origin: http://evil.example\r\n", "other sites"),
        (address, "Origin: null\r\n", "other sites"),
    ] {
        let refused = ask(host, more);
        assert_eq!(refused.status, 403, "{host} {more}");
        assert!(refused.error().contains(part), "{}", refused.error());
    }
    // Every path is closed to them, also those without a key, and what is not there.
    for path in ["/", "/health", "/v1/models", "/metrics", "/nowhere"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        assert_eq!(server.raw(request.as_bytes()).status, 403, "{path}");
    }
    let nameless = server.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(nameless.status, 400);
    assert!(nameless.error().contains("Host"));
    let old = server.raw(b"GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 200);
    let refused = "infer_http_responses_total{path=\"/v1/completions\",code=\"403\"}";
    assert_eq!(server.metric(refused), 4.0);
}
