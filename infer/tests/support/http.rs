//! A server on a free port, and a minimal HTTP client that can also send invalid requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// `infer serve`; the process ends when this value is dropped.
pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    pub fn start(model: &Path, arguments: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_infer")), model, arguments)
    }

    /// Starts it by a program that has further arguments: the server and its arguments, say.
    pub fn start_by(mut program: Command, model: &Path, arguments: &[&str]) -> Self {
        let mut child = program
            .args(["serve", "--backend", "flex", "--port", "0", "--model"])
            .arg(model)
            .args(arguments)
            .env_remove("INFER_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://");
        let address = address.unwrap_or_else(|| panic!("{line:?}")).1.into();
        Self { child, address }
    }

    pub fn connect(&self) -> TcpStream {
        connect(&self.address)
    }

    /// Sends these bytes unchanged, and reads until the server closes the connection.
    pub fn raw(&self, request: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that has found an error may close the connection early.
        let _ = stream.write_all(request);
        Response::read(stream)
    }

    /// Sends bytes, and nothing more.
    pub fn half_closed(&self, request: &[u8]) -> Response {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        Response::read(stream)
    }

    pub fn get(&self, path: &str) -> Response {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        self.raw(request.as_bytes())
    }

    pub fn post(&self, body: impl ToString) -> Response {
        self.raw(post(&body.to_string(), "").as_bytes())
    }

    /// The response to a body for the next turn of a chat.
    pub fn chat(&self, body: impl ToString) -> Response {
        let request = post(&body.to_string(), "");
        let chat = request.replacen("/v1/completions", "/v1/chat/completions", 1);
        self.raw(chat.as_bytes())
    }

    /// The response to a body that is as it should be.
    pub fn complete(&self, body: Value) -> Value {
        let response = self.post(&body);
        assert_eq!(response.status, 200, "{body}: {}", response.body);
        response.json()
    }

    /// The one text of such a response.
    pub fn text(&self, body: Value) -> String {
        let text = &self.complete(body)["choices"][0]["text"];
        text.as_str().unwrap().to_owned()
    }

    /// Sends it a signal, such as `-TERM`.
    #[cfg(unix)]
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let line = page
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{page}"))[name.len() + 1..]
            .parse()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that does not wait for ever.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(120));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// A completion request, with further header lines.
pub fn post(body: &str, headers: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub struct Response {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Response {
    pub fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (headers, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = headers.to_ascii_lowercase();
        let body = if headers.contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            body.into()
        };
        Self {
            status,
            headers,
            body,
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The error's message, in OpenAI's shape.
    pub fn error(&self) -> String {
        let json = self.json();
        let error = &json["error"];
        for key in ["type", "param", "code"] {
            assert!(error.get(key).is_some(), "no {key}: {json}");
        }
        error["message"].as_str().unwrap().to_owned()
    }

    /// The JSON of the events of a stream, which ends as it should.
    pub fn events(&self) -> Vec<Value> {
        assert!(self.headers.contains("content-type: text/event-stream"));
        let lines: Vec<&str> = self.body.split_terminator("\n\n").collect();
        let (last, lines) = lines.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]");
        let json =
            |line: &&str| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        lines.iter().map(json).collect()
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}
