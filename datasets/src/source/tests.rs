use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;
use crate::fixtures::write;

const LINES: &str = "{\"text\": \"one\\n\\u00e9\", \"url\": \"x\"}\n\n  \r\n{\"n\": {\"text\": 1}, \"text\": \"two\"}\r\n{\"text\":\"\"}";
const TEXTS: [&str; 3] = ["one\né", "two", ""];

fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_ref()).unwrap();
    encoder.finish().unwrap()
}

fn read(sources: &[&Path]) -> Result<Vec<String>> {
    let sources: Vec<PathBuf> = sources.iter().map(|path| path.into()).collect();
    Documents::new(source_files(&sources)?).collect()
}

fn error(path: &Path) -> DataError {
    let error = read(&[path]).unwrap_err();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.to_string().contains(name), "{error}");
    error
}

#[test]
fn every_format_is_read() {
    let folder = TempDir::new().unwrap();
    let zstd = zstd::encode_all(LINES.as_bytes(), 3).unwrap();
    for (name, bytes) in [
        ("a.jsonl", LINES.into()),
        ("a.jsonl.gz", gzip(LINES)),
        ("a.json.gz", gzip(LINES)),
        ("A.JSONL.ZST", zstd),
        ("empty.jsonl", Vec::new()),
    ] {
        let documents = read(&[&write(&folder, name, &bytes)]).unwrap();
        let expected: &[&str] = if bytes.is_empty() { &[] } else { &TEXTS };
        assert_eq!(documents, expected, "{name}");
    }
    let text = "a\n\n{\"text\": 1}\n";
    assert_eq!(read(&[&write(&folder, "a.txt", text)]).unwrap(), [text]);
    assert_eq!(read(&[&write(&folder, "b.txt", "")]).unwrap(), [""]);
}

#[test]
fn several_compressed_streams_in_one_file_are_all_read() {
    let folder = TempDir::new().unwrap();
    let line = |i| format!("{{\"text\": \"{i}\"}}\n");
    let gz: Vec<u8> = (0..3).flat_map(|i| gzip(line(i))).collect();
    let zst: Vec<u8> = (0..3)
        .flat_map(|i| zstd::encode_all(line(i).as_bytes(), 3).unwrap())
        .collect();
    for path in [
        write(&folder, "a.json.gz", gz),
        write(&folder, "a.jsonl.zst", zst),
    ] {
        assert_eq!(read(&[&path]).unwrap(), ["0", "1", "2"]);
    }
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let folder = TempDir::new().unwrap();
    let txt = write(&folder, "a.txt", "\u{feff}one\u{feff}");
    let jsonl = write(&folder, "a.jsonl", "\u{feff}{\"text\": \"\u{feff}two\"}");
    assert_eq!(
        read(&[&txt, &jsonl]).unwrap(),
        ["one\u{feff}", "\u{feff}two"]
    );
}

#[test]
fn folders_are_read_by_path_and_sources_in_order() {
    let folder = TempDir::new().unwrap();
    for name in ["b.txt", "a/z.txt", "a/b/c.txt", "c.txt", "a.txt"] {
        write(&folder, name, name);
    }
    write(&folder, "README.md", "no text of ours");
    write(&folder, "a/.hidden.txt", "hidden");
    write(&folder, ".git/log.txt", "hidden");
    let sorted = ["a/b/c.txt", "a/z.txt", "a.txt", "b.txt", "c.txt"];
    assert_eq!(read(&[folder.path()]).unwrap(), sorted);

    // What is named first comes first, and nothing comes twice.
    let c = folder.path().join("c.txt");
    let documents = read(&[&c, folder.path(), &folder.path().join("a"), &c]).unwrap();
    assert_eq!(
        documents,
        ["c.txt", "a/b/c.txt", "a/z.txt", "a.txt", "b.txt"]
    );
}

/// Downloads are often kept as blobs without an ending, and links to them.
#[cfg(unix)]
#[test]
fn a_link_has_the_format_of_its_own_name() {
    let folder = TempDir::new().unwrap();
    let blob = write(&folder, "blobs/0123", gzip(LINES));
    let link = folder.path().join("snapshot/a.json.gz");
    fs::create_dir(folder.path().join("snapshot")).unwrap();
    std::os::unix::fs::symlink(blob, &link).unwrap();
    assert_eq!(read(&[&link]).unwrap(), TEXTS);
    assert_eq!(read(&[folder.path(), &link]).unwrap(), TEXTS);

    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
    let loops = read(&[folder.path()]).unwrap_err();
    assert!(matches!(loops, DataError::Io { .. }), "{loops}");
}

#[test]
fn wrong_sources_are_errors() {
    let folder = TempDir::new().unwrap();
    let missing = error(&folder.path().join("missing.txt"));
    assert!(matches!(missing, DataError::Io { .. }), "{missing}");
    for name in ["a.parquet", "b.json", "c.gz", "d"] {
        let unknown = error(&write(&folder, name, "x"));
        assert!(
            matches!(unknown, DataError::UnknownFormat { .. }),
            "{unknown}"
        );
    }
    let nothing = error(folder.path());
    assert!(
        matches!(nothing, DataError::NoTextFiles { .. }),
        "{nothing}"
    );
}

#[test]
fn a_bad_line_is_named() {
    let folder = TempDir::new().unwrap();
    let good = "{\"text\": \"good\"}\n\n";
    for bad in [
        "{\"text\": \"never closed",
        "[]",
        "\"text\"",
        "{\"text\": 5}",
        "{\"text\": [\"a\"]}",
        "{\"text\": \"\\ud800\"}",
        "{\"text\": \"a\"} {\"text\": \"b\"}",
        "nonsense",
    ] {
        let path = write(&folder, "a.json.gz", gzip(format!("{good}{bad}\n{good}")));
        let error = error(&path);
        assert!(
            matches!(error, DataError::BadJson { line: 3, .. }),
            "{error}"
        );
        assert!(!error.to_string().contains("at line 1"), "{error}");
    }
    for bad in ["{}", "{\"content\": \"a\"}", "{\"text\": null}"] {
        let path = write(&folder, "a.jsonl", format!("{good}{bad}\n{good}"));
        let error = error(&path);
        assert!(
            matches!(error, DataError::NoText { line: 3, .. }),
            "{error}"
        );
    }
}

#[test]
fn bad_utf8_is_named_by_line() {
    let folder = TempDir::new().unwrap();
    let bytes = b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n";
    for path in [
        write(&folder, "a.jsonl", bytes),
        write(&folder, "a.txt", bytes),
        write(&folder, "a.json.gz", gzip(bytes)),
    ] {
        let error = error(&path);
        assert!(
            matches!(error, DataError::NotUtf8 { line: 2, .. }),
            "{error}"
        );
    }
}

#[test]
fn corrupt_and_truncated_files_are_errors() {
    let folder = TempDir::new().unwrap();
    // Text that does not compress to next to nothing, so that half a file holds many lines.
    let lines: String = (0..5000_u32)
        .map(|i| format!("{{\"text\": \"{:x}\"}}\n", i.wrapping_mul(2_654_435_761)))
        .collect();
    let gz = gzip(&lines);
    let zst = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    let mut flipped = gz.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 64].fill(0xff);
    let mut trailing = gz.clone();
    trailing.extend(b"no gzip");
    for (path, from) in [
        (write(&folder, "half.json.gz", &gz[..gz.len() / 2]), 1000),
        (write(&folder, "tail.json.gz", &gz[..gz.len() - 4]), 4000),
        (write(&folder, "flipped.json.gz", flipped), 1000),
        (write(&folder, "trailing.json.gz", trailing), 5000),
        (write(&folder, "half.jsonl.zst", &zst[..zst.len() / 2]), 1),
        (write(&folder, "plain.json.gz", &lines), 1),
        (write(&folder, "plain.jsonl.zst", &lines), 1),
        (write(&folder, "empty.json.gz", ""), 1),
    ] {
        match error(&path) {
            DataError::Unreadable { line, .. } => assert!(line >= from, "{line}: {path:?}"),
            // A flipped bit may come out as other text before it comes out as an error.
            error => assert!(path.ends_with("flipped.json.gz"), "{error}"),
        }
    }
}

#[test]
fn nothing_follows_an_error() {
    let folder = TempDir::new().unwrap();
    write(
        &folder,
        "a.jsonl",
        "{\"text\": \"a\"}\nbad\n{\"text\": \"b\"}\n",
    );
    write(&folder, "b.txt", "c");
    let files = source_files(&[folder.path().into()]).unwrap();
    let documents: Vec<_> = Documents::new(files).collect();
    assert!(matches!(&documents[..], [Ok(a), Err(_)] if a == "a"));
}

#[test]
fn the_bytes_on_disk_are_counted() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.json.gz", gzip(LINES));
    write(&folder, "b.txt", "some text");
    let files = source_files(&[folder.path().into()]).unwrap();
    let size: u64 = files.iter().map(|file| file.bytes).sum();
    let mut documents = Documents::new(files);
    assert_eq!(documents.bytes_read(), 0);
    assert_eq!(documents.by_ref().count(), 4);
    assert_eq!(documents.bytes_read(), size);
}
