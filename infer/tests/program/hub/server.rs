//! A hub on this machine: models and data sets by their names, and faults of a network.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
/// The names under which the hub knows that revision.
const REVISIONS: [&str; 3] = ["main", REVISION, "refs%2Fconvert%2Fparquet"];

/// Where large files are.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Place {
    #[default]
    Here,
    /// At another path of the hub.
    Moved,
    /// At another address.
    Elsewhere,
}

/// What a hub holds, and how it behaves.
#[derive(Default)]
pub struct Site {
    /// Files by `OWNER/NAME` or `datasets/OWNER/NAME`, and by name. Empty files are listed and cannot be
    /// fetched.
    pub models: HashMap<String, BTreeMap<String, Vec<u8>>>,
    pub place: Place,
    /// The token that requests must have.
    pub token: Option<String>,
    /// Whether to break off the next download of weights in the middle.
    pub breaks: AtomicBool,
    /// Whether to report wrong hashes.
    pub lies: bool,
}

impl Site {
    /// Adds the files of a folder as a model, without some of them.
    pub fn with(mut self, name: &str, folder: &Path, without: &[&str]) -> Self {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !without.contains(&&*file) {
                files.insert(file, fs::read(path).unwrap());
            }
        }
        self.models.insert(name.into(), files);
        self
    }

    pub fn open(self) -> Hub {
        Hub::open(self)
    }
}

/// The parts of a request that matter.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub path: String,
    pub range: Option<(usize, Option<usize>)>,
    pub authorization: Option<String>,
    /// Whether the request was sent to the hub, and not to the other address.
    pub of_hub: bool,
}

/// A hub that serves until the test program ends.
pub struct Hub {
    pub endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    fn open(site: Site) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (hub, elsewhere) = (listener(), listener());
        let address = |hub: &TcpListener| format!("http://{}", hub.local_addr().unwrap());
        let (endpoint, other) = (address(&hub), address(&elsewhere));
        let site = Arc::new(site);
        for (listener, is_hub) in [(hub, true), (elsewhere, false)] {
            let (site, asked, other) = (site.clone(), asked.clone(), other.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut heard = hear(&stream).unwrap_or_default();
                    heard.of_hub = is_hub;
                    asked.lock().unwrap().push(heard.clone());
                    let _ = site.answer(stream, &heard, is_hub.then_some(&other));
                }
            });
        }
        Self { endpoint, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn hear(stream: &TcpStream) -> io::Result<Asked> {
    let mut asked = Asked::default();
    for (i, line) in BufReader::new(stream.try_clone()?).lines().enumerate() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if i == 0 {
            asked.path = line.split(' ').nth(1).unwrap_or_default().into();
        }
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => asked.authorization = Some(value.into()),
            "range" => {
                let range = value
                    .strip_prefix("bytes=")
                    .and_then(|range| range.split_once('-'));
                asked.range = range.map(|(from, to)| (from.parse().unwrap(), to.parse().ok()));
            }
            _ => {}
        }
    }
    Ok(asked)
}

impl Site {
    /// Answers a request. The hub knows the address `elsewhere`; the server at that address gets `None`.
    fn answer(
        &self,
        stream: TcpStream,
        asked: &Asked,
        elsewhere: Option<&String>,
    ) -> io::Result<()> {
        let key = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if elsewhere.is_some() && key.is_some() && asked.authorization != key {
            return reply(stream, "401 Unauthorized", "", b"", 0);
        }
        let path = asked.path.trim_start_matches("/moved");
        for (model, files) in &self.models {
            let kind = if model.starts_with("datasets/") {
                ""
            } else {
                "models/"
            };
            let revision = path.strip_prefix(&format!("/api/{kind}{model}/revision/"));
            if revision.is_some_and(|name| REVISIONS.contains(&name)) {
                let names = files
                    .keys()
                    .map(|name| format!("{{\"rfilename\":\"{name}\"}}"));
                let names = names.collect::<Vec<_>>().join(",");
                let body = format!("{{\"sha\":\"{REVISION}\",\"siblings\":[{names}]}}");
                return reply(stream, "200 OK", "", body.as_bytes(), body.len());
            }
            let file = path.strip_prefix(&format!("/{model}/resolve/{REVISION}/"));
            let Some(file) =
                file.filter(|file| files.get(*file).is_some_and(|bytes| !bytes.is_empty()))
            else {
                continue;
            };
            return self.file(stream, asked, (file, &files[file]), elsewhere);
        }
        reply(stream, "404 Not Found", "", b"", 0)
    }

    fn file(
        &self,
        stream: TcpStream,
        asked: &Asked,
        (name, bytes): (&str, &[u8]),
        elsewhere: Option<&String>,
    ) -> io::Result<()> {
        let is_large = name.ends_with("safetensors");
        let hashed = if self.lies { b"something else" } else { bytes };
        let etag = if is_large {
            format!("X-Linked-Etag: \"{:x}\"\r\n", Sha256::digest(hashed))
        } else {
            format!("ETag: \"{}\"\r\n", asked.path.replace('/', "-"))
        };
        let headers = format!("{etag}X-Repo-Commit: {REVISION}\r\n");
        let is_moved = asked.path.starts_with("/moved");
        let location = match (self.place, elsewhere) {
            (Place::Moved, _) if is_large && !is_moved => Some(format!("/moved{}", asked.path)),
            (Place::Elsewhere, Some(other)) if is_large => Some(format!("{other}{}", asked.path)),
            _ => None,
        };
        if let Some(location) = location {
            let headers = format!("{headers}Location: {location}\r\n");
            return reply(stream, "302 Found", &headers, b"", 0);
        }
        let (from, to) = asked.range.unwrap_or_default();
        if from >= bytes.len() {
            return reply(stream, "416 Range Not Satisfiable", "", b"", 0);
        }
        let to = to.map_or(bytes.len(), |last| last + 1);
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
        let (body, length) = (&bytes[from..to], to - from);
        let breaks = is_large && length > 1 && self.breaks.swap(false, SeqCst);
        let sent = if breaks { length / 2 } else { length };
        let headers = headers + &range;
        reply(
            stream,
            "206 Partial Content",
            &headers,
            &body[..sent],
            length,
        )
    }
}

/// Announces `length` bytes, and sends `body`, which may be shorter.
fn reply(
    mut stream: TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
    length: usize,
) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(body)
}
