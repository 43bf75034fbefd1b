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
fn folders_are_read_by_path_and_sources_in_order() {
    let folder = TempDir::new().unwrap();
    for name in ["b.txt", "a/z.txt", "a/b/c.txt", "c.txt", "a.txt"] {
        write(&folder, name, name);
    }
    write(&folder, "README.md", "no text of ours");
    write(&folder, "README.txt", "about the others");
    write(&folder, "a/LICENSE-MIT.txt", "about the others");
    write(
        &folder,
        "dataset_infos.json",
        "{\n\"default\": {\"text\": \"no document\"}\n}",
    );
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
}

/// Such a link hides no text beside it, and is no error.
#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_passed_over() {
    let folder = TempDir::new().unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("gone.txt")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("around")).unwrap();
    let error = source_files(&[folder.path().into()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("2 links without a target (around, gone.txt)"),
        "{error}"
    );
    let path = write(&folder, "a.txt", "a");
    assert_eq!(read(&[folder.path()]).unwrap(), ["a"], "{path:?}");
}

#[test]
fn wrong_sources_are_errors() {
    let folder = TempDir::new().unwrap();
    let missing = error(&folder.path().join("missing.txt"));
    assert!(matches!(missing, DataError::Io { .. }), "{missing}");
    for name in ["a.arrow", "b.md", "c.gz", "d"] {
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
    assert!(
        nothing.to_string().contains("1 .arrow (a.arrow)"),
        "{nothing}"
    );
    // What only describes the data is no data; named by itself it is.
    let readme = write(&folder, "README.txt", "about the others");
    let nothing = error(folder.path());
    assert!(nothing.to_string().contains("README.txt"), "{nothing}");
    assert_eq!(read(&[&readme]).unwrap(), ["about the others"]);
    assert_eq!(
        read(&[
            &write(&folder, "more/a.jsonl", "{\"text\": \"a\"}"),
            folder.path()
        ])
        .unwrap(),
        ["a"]
    );
}

#[test]
fn a_bad_line_is_named() {
    let folder = TempDir::new().unwrap();
    let good = "{\"text\": \"good\"}\n\n";
    for bad in [
        "{\"text\": \"never closed",
        "[]",
        "[\"a\"]",
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

/// A long line, read part by part, is what it is as a whole.
#[test]
fn a_long_line_is_its_parts() {
    let folder = TempDir::new().unwrap();
    let parts_of = |line: &str, part_bytes| {
        let path = write(
            &folder,
            "a.jsonl",
            format!("{line}\n{{\"text\": \"next\"}}\n"),
        );
        let files = source_files(&[path]).unwrap();
        let (mut documents, mut document) = (Vec::new(), String::new());
        for part in Parts::new(inputs(files), 0, part_bytes) {
            let part = part.map_err(|error| error.to_string())?;
            assert!(
                part.text.len() <= part_bytes.saturating_add(70),
                "{}",
                part.text.len()
            );
            document += &part.text;
            if part.end.is_some() {
                documents.push(std::mem::take(&mut document));
            }
        }
        Ok::<_, String>(documents)
    };
    let text = "a\\\"b\\\\ \\n\\u00e9\\ud83e\\udd80\\\\ud83e é🦀漢{\\\"text\\\":}[,]".repeat(40);
    for line in [
        format!("{{\"text\": \"{text}\"}}"),
        format!(
            "{{\"a\":{{\"text\":\"no\"}},\"{text}\":\"{text}\",\"t\\u0065xt\" :\"{text}\",\"b\":[1,\"text\"]}}"
        ),
        format!("{{\"text\": \"{}\"}}", "\\ud83e\\udd80".repeat(300)),
        format!("{{\"text\": \"{}\"}}", "\\\\".repeat(900)),
        // Wrong ones.
        format!("{{\"text\": \"{text}\"}} more"),
        format!("{{\"text\": \"{text}\", \"text\": \"{text}\"}}"),
        format!("{{\"text\": \"{text}\\x\"}}"),
        format!("{{\"text\": \"{}\"}}", "\\ud83e".repeat(300)),
        format!("{{\"text\": \"{text}"),
        format!("{{\"text\": \"{text}\tb\"}}"),
        format!("{{\"tex\": \"{text}\"}}"),
        format!("{{\"text\": [\"{text}\"]}}"),
        format!("[\"{text}\"]"),
    ] {
        let whole = parts_of(&line, usize::MAX).map_err(|_| ());
        for part_bytes in [16, 17, 64, 100, 1000] {
            let parts = parts_of(&line, part_bytes);
            assert_eq!(parts.map_err(|_| ()), whole, "{part_bytes}: {line}");
        }
    }
    let text = "é🦀漢\n".repeat(300);
    let path = write(&folder, "a.txt", &text);
    for part_bytes in [1, 2, 3, 10, 1000, 10_000] {
        let files = source_files(std::slice::from_ref(&path)).unwrap();
        let parts: Result<Vec<Part>> = Parts::new(inputs(files), 0, part_bytes).collect();
        let parts = parts.unwrap();
        assert_eq!(
            parts.iter().map(|part| &*part.text).collect::<String>(),
            text
        );
        assert_eq!(parts.iter().filter(|part| part.end.is_some()).count(), 1);
    }
}

/// Each in parts, without anything that is left of the ones before.
#[test]
fn many_long_lines_are_read() {
    let folder = TempDir::new().unwrap();
    let line = format!("{{\"text\": \"{}\"}}\n", "x".repeat(100));
    let path = write(&folder, "a.jsonl", line.repeat(100_000));
    let files = source_files(&[path]).unwrap();
    let parts = Parts::new(inputs(files), 0, 64).map(|part| part.unwrap());
    let (mut documents, mut bytes) = (0, 0);
    for part in parts {
        documents += usize::from(part.end == Some(End::Document));
        bytes += part.text.len();
    }
    assert_eq!((documents, bytes), (100_000, 100 * 100_000));
}

#[test]
fn so_many_bad_lines_are_skipped_and_no_more() {
    let folder = TempDir::new().unwrap();
    let lines =
        b"{\"text\": \"a\"}\nbad\n{\"text\": NaN}\n{\"text\": \"\xff\"}\n{}\n{\"text\": \"b\"}\n";
    write(&folder, "a.jsonl", lines);
    write(&folder, "b.json", "[1, \"c\", {}]");
    let files = source_files(&[folder.path().into()]).unwrap();
    let mut documents = Documents::skipping(files.clone(), 6);
    let texts: Result<Vec<String>> = documents.by_ref().collect();
    assert_eq!(texts.unwrap(), ["a", "b", "c"]);
    assert_eq!(documents.skipped(), 6);
    for (allowed, place) in [
        (0, "a.jsonl, line 2"),
        (3, "a.jsonl, line 5"),
        (5, "b.json, line 1"),
    ] {
        let error = Documents::skipping(files.clone(), allowed).find_map(Result::err);
        let error = error.unwrap().to_string();
        assert!(error.contains(place), "{error}");
    }
    // A damaged file is no bad line.
    let half = gzip(lines);
    let path = write(&folder, "half.jsonl.gz", &half[..half.len() - 10]);
    let files = source_files(&[path]).unwrap();
    let error = Documents::skipping(files, 1000)
        .find_map(Result::err)
        .unwrap();
    assert!(matches!(error, DataError::Unreadable { .. }), "{error}");
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

#[test]
fn a_file_is_taken_once_for_each_column() {
    let folder = TempDir::new().unwrap();
    let lines = "{\"question\": \"q\", \"answer\": \"a\"}\n";
    let lines = write(&folder, "a.jsonl", lines);
    let whole = write(&folder, "b.txt", "whole");
    let sources = [
        (&lines, "question"),
        (&lines, "answer"),
        (&lines, "question"),
        (&whole, "question"),
        (&whole, "answer"),
    ];
    let sources = sources.map(|(path, column)| Source::local(path).with_column(column));
    let parts = Parts::new(super::inputs(&sources).unwrap(), 0, usize::MAX);
    let texts: Result<Vec<_>> = parts.map(|part| part.map(|part| part.text)).collect();
    assert_eq!(texts.unwrap(), ["q", "a", "whole"]);
}

#[test]
fn patterns_choose_files() {
    let folder = TempDir::new().unwrap();
    for name in [
        "b/2.txt",
        "b/1.txt",
        "a/1.txt",
        "b/.3.txt",
        "b/x[1].txt",
        "b/more/4.txt",
        "b/5.md",
    ] {
        write(&folder, name, name);
    }
    let read_pattern = |pattern: &str| read(&[&folder.path().join(pattern)]);
    assert_eq!(read_pattern("*/1.txt").unwrap(), ["a/1.txt", "b/1.txt"]);
    assert_eq!(read_pattern("b/[12].txt").unwrap(), ["b/1.txt", "b/2.txt"]);
    assert_eq!(read_pattern("**/4.txt").unwrap(), ["b/more/4.txt"]);
    // A folder that it matches is read as one, and a file of that very name is no pattern.
    assert_eq!(read_pattern("b/mor?").unwrap(), ["b/more/4.txt"]);
    assert_eq!(read_pattern("b/x[1].txt").unwrap(), ["b/x[1].txt"]);
    for nothing in ["c/*.txt", "b/*.jsonl", "b/[.txt"] {
        let error = read_pattern(nothing).unwrap_err();
        assert!(matches!(error, DataError::Pattern { .. }), "{error}");
    }
    let error = read_pattern("b/*").unwrap_err();
    assert!(matches!(error, DataError::UnknownFormat { .. }), "{error}");
}
