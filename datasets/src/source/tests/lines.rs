//! Lines that are bad, and lines that are long.

use super::*;

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
