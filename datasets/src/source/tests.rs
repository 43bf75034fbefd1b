mod lines;
mod places;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::documents::Part;
use super::*;
use crate::fixtures::write;

const LINES: &str = "{\"text\": \"one\\n\\u00e9\", \"url\": \"x\"}\n\n  \r\n{\"n\": {\"text\": 1}, \"text\": \"two\"}\r\n{\"text\":\"\"}";
const ARRAY: &str = "\u{feff}[{\"text\": \"one\\n\\u00e9\", \"n\": [1, {\"text\": \"]\"}]}, {\"text\": \"two\"}\n, \"\"]\n";
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

fn inputs(files: Vec<SourceFile>) -> Vec<Input> {
    files.into_iter().map(Input::from).collect()
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
        ("A.JSONL.ZST", zstd.clone()),
        ("a.json.zst", zstd),
        ("lines.json", LINES.into()),
        ("array.json", ARRAY.into()),
        ("array.json.gz", gzip(ARRAY)),
        ("empty.jsonl", Vec::new()),
    ] {
        let documents = read(&[&write(&folder, name, &bytes)]).unwrap();
        let expected: &[&str] = if bytes.is_empty() { &[] } else { &TEXTS };
        assert_eq!(documents, expected, "{name}");
    }
    let text = "a\n\n{\"text\": 1}\n";
    assert_eq!(read(&[&write(&folder, "a.txt", text)]).unwrap(), [text]);
    assert_eq!(read(&[&write(&folder, "b.txt", "")]).unwrap(), [""]);
    let path = write(&folder, "a.txt.gz", gzip(text));
    assert_eq!(read(&[&path]).unwrap(), [text]);
    let strings = write(&folder, "strings.json", " [\"a\", \n\"\\u00e9]\"]\n");
    assert_eq!(read(&[&strings]).unwrap(), ["a", "é]"]);
    assert!(
        read(&[&write(&folder, "none.json", "[ ]")])
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_is_no_array_is_named_by_line() {
    let folder = TempDir::new().unwrap();
    for (json, line) in [
        ("[\n\"a\"", 2),
        ("[\n\"a\"\n\"b\"]", 2),
        ("[\"a\"]\n\n[", 3),
        ("[\"a\",\n]", 2),
        ("[\n[\"a\"]]", 2),
        ("[\n1]", 2),
        ("[\"a\",\n{\"content\": \"a\"}]", 2),
        ("[{\"text\":\n\"a\"},\n{\"text\": \"b}]", 3),
        ("[\n\"\\ud800\"]", 2),
    ] {
        let error = error(&write(&folder, "a.json", json)).to_string();
        assert!(error.contains(&format!("line {line}")), "{json}: {error}");
    }
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

/// As gzip, tape drives and zstd's tools leave them.
#[test]
fn padding_skippable_frames_and_long_windows_are_read() {
    let folder = TempDir::new().unwrap();
    let mut padded = [gzip("{\"text\": \"a\"}\n"), gzip("{\"text\": \"b\"}\n")].concat();
    padded.extend([0; 1000]);
    let gz = write(&folder, "a.jsonl.gz", &padded);
    assert_eq!(read(&[&gz]).unwrap(), ["a", "b"]);
    padded.push(1);
    let gz = error(&write(&folder, "a.jsonl.gz", &padded));
    assert!(matches!(gz, DataError::Unreadable { line: 3, .. }), "{gz}");

    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frame = |text: &str, window: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    for window in [10, 27, 28, 30, 31] {
        let frames = [
            skippable.clone(),
            frame("{\"text\": \"a\"}\n", window),
            skippable.clone(),
            frame("{\"text\": \"b\"}\n", window),
            skippable.clone(),
        ];
        let zst = write(&folder, "a.jsonl.zst", frames.concat());
        assert_eq!(read(&[&zst]).unwrap(), ["a", "b"], "window {window}");
    }
    // A frame that asks for a window of 4 GiB.
    let huge = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 22 << 3, 1, 0, 0];
    let huge = error(&write(&folder, "a.jsonl.zst", huge)).to_string();
    assert!(
        huge.contains("--long=31") && !huge.contains("corrupt"),
        "{huge}"
    );
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

#[test]
fn the_text_may_be_in_another_column() {
    let folder = TempDir::new().unwrap();
    let long = "the times ".repeat(1000);
    let line = serde_json::json!({ "text": "no", "body": long, "n": {"body": 1} }).to_string();
    write(
        &folder,
        "a.jsonl",
        format!("{{\"body\": \"one\"}}\n{line}\n"),
    );
    write(&folder, "b.json", "[{\"body\": \"two\"}]");
    // One object without that field is about the others.
    write(&folder, "info.json", "{\n\"text\": \"no\"\n}");
    let files = |column: &str| {
        let source = Source::local(folder.path()).with_column(column);
        super::inputs(&[source]).unwrap()
    };
    let texts = |part_bytes| -> Result<String> {
        Parts::new(files("body"), 0, part_bytes)
            .map(|part| part.map(|part| part.text))
            .collect()
    };
    for part_bytes in [64, usize::MAX] {
        assert_eq!(texts(part_bytes).unwrap(), format!("one{long}two"));
    }
    let wrong = Parts::new(files("Body"), 0, usize::MAX)
        .find_map(Result::err)
        .unwrap();
    let wrong = wrong.to_string();
    assert!(
        wrong.contains("no text in \"Body\"; its fields are \"body\""),
        "{wrong}"
    );
    // Only another column than the usual one is a part of the identity.
    let json = |column| serde_json::to_value(&files(column)[0].file).unwrap();
    assert_eq!(json("body")["column"], "body");
    assert_eq!(json(TEXT).get("column"), None);
}
