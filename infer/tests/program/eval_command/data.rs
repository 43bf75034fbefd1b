//! The data of tasks: its formats, and what is wrong with a record.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{bundled, eval, failure, json, kept, stderr};

const PIQA: &str = r#"{"goal": "g", "sol1": "one", "sol2": "two", "label": 0}"#;

/// The same records as JSON lines, gzip, zstd and parquet.
#[test]
fn every_format_of_data() {
    let home = tempfile::tempdir().unwrap();
    let text = bundled().join("arc_easy-rows.jsonl");
    let text = fs::read(text).unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&text).unwrap();
    let parquet = fs::read(bundled().join("arc_easy-rows.parquet")).unwrap();
    let forms = [
        (".jsonl", text.clone()),
        (".jsonl.gz", gzip.finish().unwrap()),
        (".jsonl.zst", zstd::encode_all(&text[..], 1).unwrap()),
        (".parquet", parquet),
    ];
    let mut tables = Vec::new();
    for (ending, bytes) in forms {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(format!("arc_easy{ending}")), bytes).unwrap();
        let file = home.path().join("results.json");
        let arguments = ["--json", file.to_str().unwrap()];
        let output = eval(home.path(), data.path(), "arc_easy", &arguments);
        assert!(output.status.success(), "{ending}: {}", stderr(&output));
        tables.push(json(&file)["samples"].clone());
    }
    assert_eq!(tables[0]["arc_easy"].as_array().unwrap().len(), 4);
    assert!(tables.iter().all(|table| *table == tables[0]));
}

#[test]
fn bad_data_is_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let refused = |task: &str, ending: &str, bytes: &[u8]| {
        let file = data.path().join(format!("{task}{ending}"));
        fs::write(&file, bytes).unwrap();
        let message = failure(&eval(home.path(), data.path(), task, &[]));
        fs::remove_file(&file).unwrap();
        message
    };
    let line = |task: &str, line: &str| refused(task, ".jsonl", line.as_bytes());

    let message = failure(&eval(home.path(), data.path(), "piqa", &[]));
    assert!(message.contains("no data for piqa here"), "{message}");
    assert!(line("piqa", "\n \n").contains("no document in this file"));
    let second = line("piqa", &format!("{PIQA}\n{{\"goal\": 3}}"));
    assert!(
        second.contains("piqa.jsonl, line 2: invalid type: integer `3`"),
        "{second}"
    );
    assert!(line("piqa", r#"{"goal": "g"}"#).contains("missing field `sol1`"));
    let cut = line("piqa", &PIQA[..20]);
    assert!(
        cut.contains("line 1: no JSON, from column 20 on: EOF"),
        "{cut}"
    );
    let label = line("piqa", &PIQA.replace(": 0", ": 2"));
    assert!(label.contains("the right choice is number 2 (from 0), and there are 2"));
    let label = line("piqa", &PIQA.replace(": 0", ": -1"));
    assert!(
        label.contains("the label is -1, and not a number from 0 on"),
        "{label}"
    );
    let arc = r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#;
    assert!(line("arc_easy", arc).contains(r#"answerKey is "B", which is none of"#));
    let winogrande = r#"{"sentence": "a b", "option1": "a", "option2": "b", "answer": "1"}"#;
    assert!(line("winogrande", winogrande).contains("the sentence has no _"));
    let winogrande = winogrande.replace("a b", "a _").replace("\"1\"", "\"3\"");
    assert!(line("winogrande", &winogrande).contains("the answer is 3; it must be 1 or 2"));

    assert!(refused("piqa", ".jsonl", b"\xff\xfe").contains("line 1: not UTF-8"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(PIQA.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let cut = refused("piqa", ".jsonl.gz", &gzip[..gzip.len() - 9]);
    assert!(cut.contains("truncated or damaged"), "{cut}");
    assert!(refused("piqa", ".jsonl.zst", &gzip).contains("truncated or damaged"));
    let parquet = fs::read(bundled().join("arc_easy-rows.parquet")).unwrap();
    let cut = refused("arc_easy", ".parquet", &parquet[..parquet.len() - 9]);
    assert!(cut.contains("arc_easy.parquet, its end: "), "{cut}");
    assert!(refused("piqa", ".parquet", &parquet).contains("row 1: missing field `goal`"));
    assert_eq!(kept(&home), 0);
}
