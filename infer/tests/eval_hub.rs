//! A task's data from a hub on this machine.
#![cfg(feature = "flex")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use support::teacher_folder;

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const DATASET: &str = "datasets/allenai/ai2_arc";
const FILE: &str = "ARC-Easy/test/0000.parquet";

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eval")
}

/// The address of a hub that holds four documents of ARC, in two files. It ends with this program.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream);
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let lines: Vec<String> = BufReader::new(stream.try_clone()?)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap_or_default();
    let file = path.strip_prefix(&format!("/{DATASET}/resolve/{REVISION}/"));
    let (status, headers, body) = if file.is_some_and(|file| file.starts_with("ARC-Easy/test/000"))
    {
        let bytes = fs::read(bundled().join("arc_easy-rows.parquet"))?;
        let range = lines.iter().find_map(|line| line.split_once("bytes="));
        let (from, to) = range
            .and_then(|range| range.1.split_once('-'))
            .unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse().map_or(bytes.len(), |last: usize| last + 1);
        let headers = format!(
            "ETag: \"{}\"\r\nX-Repo-Commit: {REVISION}\r\nContent-Range: bytes {from}-{}/{}\r\n",
            path.replace('/', "-"),
            to - 1,
            bytes.len()
        );
        ("206 Partial Content", headers, bytes[from..to].to_vec())
    } else if path == format!("/api/{DATASET}/revision/refs%2Fconvert%2Fparquet") {
        let names = [
            FILE,
            "ARC-Easy/test/0001.parquet",
            "ARC-Easy/train/0000.parquet",
        ];
        let siblings = names
            .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
            .join(",");
        let body = format!("{{\"sha\":\"{REVISION}\",\"siblings\":[{siblings}]}}");
        ("200 OK", String::new(), body.into_bytes())
    } else {
        ("404 Not Found", String::new(), Vec::new())
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(&body)
}

fn eval(home: &Path, endpoint: &str, task: &str, offline: bool) -> Output {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args(["eval", "--backend", "flex", "--tasks", task, "--model"]);
    infer.arg(teacher_folder());
    infer.env("XDG_CACHE_HOME", home).env("HF_HOME", home);
    infer.env("HF_ENDPOINT", endpoint).env_remove("HF_TOKEN");
    infer.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
    infer.env_remove("HF_HUB_CACHE");
    infer.output().unwrap()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_task_comes_from_the_hub_and_then_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let endpoint = hub();
    let nothing_yet = eval(home.path(), &endpoint, "arc_easy", true);
    assert_eq!(nothing_yet.status.code(), Some(1));
    assert!(said(&nothing_yet).contains("HF_HUB_OFFLINE forbids to fetch it"));

    let fetched = eval(home.path(), &endpoint, "arc_easy", false);
    assert!(fetched.status.success(), "{}", said(&fetched));
    // Four documents a file, in both files of the split.
    assert!(
        said(&fetched).contains("8 documents in "),
        "{}",
        said(&fetched)
    );
    for (endpoint, offline) in [("http://127.0.0.1:9", false), (endpoint.as_str(), true)] {
        let cached = eval(home.path(), endpoint, "arc_easy", offline);
        assert!(cached.status.success(), "{}", said(&cached));
        assert_eq!(cached.stdout, fetched.stdout);
    }
}

#[test]
fn what_the_hub_has_not_is_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let endpoint = hub();
    let refused = |endpoint: &str, task: &str| {
        let output = eval(home.path(), endpoint, task, false);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
        said(&output).to_owned()
    };
    let unknown = refused(&endpoint, "piqa");
    assert!(unknown.contains("the data set baber/piqa"), "{unknown}");
    assert!(unknown.contains("--data takes a folder"), "{unknown}");
    let split = refused(&endpoint, "arc_challenge");
    assert!(
        split.contains("it has no ARC-Challenge/test in parquet"),
        "{split}"
    );
    let unreachable = refused("http://127.0.0.1:9", "hellaswag");
    assert!(
        unreachable.contains("hellaswag: fetching the data set"),
        "{unreachable}"
    );
}
