//! A hub on this machine, as Hugging Face's answers: for tests of what fetches from it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The newest commit of every repository.
pub const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// The bytes of a file that are asked for: from the first, up to and with the last.
pub type Range = Option<(usize, Option<usize>)>;

/// What a hub answers: a status, headers, and a body. A header `X-Breaks-After: N` breaks the connection after N bytes of
/// the body.
pub type Answer = (&'static str, String, Vec<u8>);

/// A server on a port of its own, until the test program ends.
pub struct LocalHub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl LocalHub {
    /// One that answers each request, for a path and a part of a file, by `answer`.
    ///
    /// # Panics
    /// Where no port is free.
    pub fn serve(answer: impl Fn(&str, Range) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                log.lock()
                    .expect("a log")
                    .push(exchange(stream, &answer).unwrap_or_default());
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            requests,
        }
    }

    /// Its address, as `HF_ENDPOINT` has it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The paths of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("a log").clone()
    }
}

/// Answers one request, and returns its path.
fn exchange(
    mut stream: TcpStream,
    answer: &impl Fn(&str, Range) -> Answer,
) -> std::io::Result<String> {
    let lines: Vec<String> = BufReader::new(stream.try_clone()?)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let range = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": bytes=")?;
        let (from, to) = value.split_once('-')?;
        name.eq_ignore_ascii_case("range")
            .then(|| (from.parse().unwrap_or(0), to.parse().ok()))
    });
    let (status, headers, body) = answer(&path, range);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    let breaks = headers.split("X-Breaks-After: ").nth(1);
    let breaks = breaks.and_then(|rest| rest.lines().next()?.parse().ok());
    stream.write_all(&body[..breaks.unwrap_or(length)])?;
    Ok(path)
}

/// What the hub says of a repository with these files, and one more.
pub fn listing<'a>(names: impl Iterator<Item = &'a str>) -> Answer {
    let names = names.chain(["README.md"]);
    let siblings: Vec<_> = names
        .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
        .collect();
    let siblings = siblings.join(",");
    let body = format!("{{\"sha\":\"{REVISION}\",\"siblings\":[{siblings}]}}");
    ("200 OK", String::new(), body.into_bytes())
}

/// A part of a file, with one header more.
pub fn part(bytes: &[u8], range: Range, header: &str) -> Answer {
    let (from, to) = range.unwrap_or((0, None));
    let to = to.map_or(bytes.len(), |last: usize| last + 1);
    let headers = format!(
        "{header}\r\nX-Repo-Commit: {REVISION}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        bytes.len()
    );
    ("206 Partial Content", headers, bytes[from..to].to_vec())
}
