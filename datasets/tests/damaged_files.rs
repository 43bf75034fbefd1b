//! Thousands of damaged files of every kind that this crate reads: each gives text, tokens or an error, and
//! never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::{
    DataError, Documents, PrepareOptions, TokenShards, Tokenizer, parquet_rows,
    silence_caught_panics, source_files,
};
use flate2::Compression;
use flate2::read::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::mutations::{Mutator, each};

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

/// An error in one line that names the file.
fn check(error: &DataError, path: &Path) {
    let (message, name) = (error.to_string(), path.file_name().unwrap());
    let named = message.contains(name.to_str().unwrap());
    assert!(
        named && !message.contains('\n') && message.len() < 2000,
        "{message}"
    );
}

/// A small tokenizer with many of the parts that a file can have.
fn tokenizers() -> Vec<Value> {
    let tokens = [
        "<unk>",
        "<|endoftext|>",
        "<0x0A>",
        "<0xE5>",
        "\u{2581}",
        "a",
        "b",
        "ab",
        "\u{2581}ab",
        "##a",
    ];
    let vocab: serde_json::Map<String, Value> = (0..)
        .zip(tokens)
        .map(|(id, token)| (token.into(), id.into()))
        .collect();
    let added = json!([{
        "id": 1, "content": "<|endoftext|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": true,
    }, {
        "id": 10, "content": "a b", "special": false, "normalized": true,
        "single_word": true, "lstrip": true, "rstrip": false,
    }]);
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocab, "merges": ["a b", "\u{2581} ab"],
    });
    let scores: Vec<Value> = (0..)
        .zip(tokens)
        .map(|(i, token)| json!([token, -f64::from(i)]))
        .collect();
    let metaspace = json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true });
    let all = [
        (
            json!({ "type": "Sequence", "normalizers": [
                { "type": "NFKC" }, { "type": "Prepend", "prepend": "\u{2581}" }, replace(" ", "\u{2581}"),
                { "type": "Strip", "strip_left": true, "strip_right": true }, { "type": "Lowercase" },
            ] }),
            Value::Null,
            json!({ "type": "Sequence", "decoders": [
                replace("\u{2581}", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] }),
            bpe.clone(),
        ),
        (
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }),
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "BertPreTokenizer" }, { "type": "Digits", "individual_digits": true },
                { "type": "Punctuation", "behavior": "Isolated" },
            ] }),
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
            json!({ "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab }),
        ),
        (
            json!({ "type": "Nmt" }),
            metaspace.clone(),
            metaspace,
            json!({ "type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": true }),
        ),
        (
            json!({ "type": "Precompiled", "precompiled_charsmap": format!("AAQA{}AAA=", "A".repeat(1364)) }),
            json!({ "type": "Split", "pattern": { "Regex": "\\s+|\\w+" }, "behavior": "MergedWithPrevious", "invert": false }),
            json!({ "type": "CTC", "pad_token": "<unk>", "word_delimiter_token": "\u{2581}", "cleanup": true }),
            json!({ "type": "WordLevel", "unk_token": "<unk>", "vocab": vocab }),
        ),
        (
            Value::Null,
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
            bpe,
        ),
    ];
    let all = all.into_iter().map(|(normalizer, pre_tokenizer, decoder, model)| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
            "post_processor": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        })
    });
    all.collect()
}

#[test]
fn damaged_tokenizers() {
    silence_caught_panics();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    let texts = [
        "",
        "ab a b",
        " ab\n\u{e5}  ABé\u{301}1.",
        "a\u{fffd}\u{200d}🦀\u{2581}##a",
    ];
    let mut usable = 0;
    for whole in tokenizers().iter().map(Value::to_string) {
        fs::write(&path, &whole).unwrap();
        if let Err(error) = Tokenizer::from_file(&path) {
            panic!("{error}: {whole}");
        }
        each(600, |mutator| {
            fs::write(&path, mutator.json(&whole)).unwrap();
            match Tokenizer::from_file(&path) {
                Err(error) => check(&error, &path),
                Ok(tokenizer) => {
                    usable += 1;
                    for text in texts {
                        match tokenizer.encode(text) {
                            Err(error) => check(&error, &path),
                            Ok(ids) => drop(tokenizer.decode(&ids).unwrap()),
                        }
                    }
                    let ids: Vec<u32> = (0..40).map(|_| mutator.below(14) as u32).collect();
                    let mut stream = tokenizer.stream_after(&ids[..20]);
                    for &id in &ids[20..] {
                        stream.push(id).unwrap();
                    }
                    stream.finish().unwrap();
                    assert!(
                        tokenizer
                            .token_bytes(3)
                            .is_none_or(|bytes| bytes.len() < 1000)
                    );
                    tokenizer.repeats_bytes(3);
                }
            }
        });
    }
    assert!(usable > 150, "{usable}");
}

fn read(path: &Path, bad_lines: u64) {
    let files = match source_files(&[path.into()]) {
        Ok(files) => files,
        Err(error) => return check(&error, path),
    };
    for document in Documents::skipping(files, bad_lines) {
        match document {
            Ok(text) => assert!(text.len() < 1 << 20),
            Err(error) => check(&error, path),
        }
    }
}

#[test]
fn damaged_texts() {
    let folder = TempDir::new().unwrap();
    let lines: String = (0..40)
        .map(|i| {
            format!("{{\"text\": \"naïve {i} \\ud83e\\udd80\", \"n\": [{i}, {{\"a\": null}}]}}\n")
        })
        .collect();
    let array = format!("[{}]", lines.trim_end().replace('\n', ",\n"));
    let gzip = |text: &str| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(
            &mut GzEncoder::new(text.as_bytes(), Compression::default()),
            &mut bytes,
        )
        .unwrap();
        bytes
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
    for (name, whole) in [
        ("a.jsonl", lines.clone().into_bytes()),
        (
            "a.jsonl.gz",
            [gzip(&lines), gzip(&lines), vec![0; 9]].concat(),
        ),
        ("a.jsonl.zst", [zstd(&lines), zstd(&lines)].concat()),
        ("a.json", array.clone().into_bytes()),
        ("a.json.gz", gzip(&array)),
        ("a.txt", lines.into_bytes()),
    ] {
        let path = folder.path().join(name);
        each(500, |mutator| {
            fs::write(&path, mutator.bytes(&whole)).unwrap();
            read(&path, 0);
            read(&path, 3);
        });
    }
}

/// A Parquet file with two columns, as bytes.
fn table(codec: parquet::basic::Compression) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message schema { optional int64 n; optional binary text (UTF8); }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties = WriterProperties::builder().set_compression(codec).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), schema.into(), properties.into()).unwrap();
    for _ in 0..2 {
        let levels = [1, 0, 1, 1, 1, 1];
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let numbers = [1, 2, 3, 4, 5];
        column
            .typed::<Int64Type>()
            .write_batch(&numbers, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = ["a", "naïve", "", "🦀", "a"].map(ByteArray::from);
        column
            .typed::<ByteArrayType>()
            .write_batch(&texts, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn damaged_tables() {
    use parquet::basic::Compression;
    silence_caught_panics();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
    ] {
        let whole = table(codec);
        each(1000, |mutator: &mut Mutator| {
            fs::write(&path, mutator.bytes(&whole)).unwrap();
            read(&path, 2);
            let Ok(rows) = parquet_rows(&path) else {
                return;
            };
            for row in rows.take(100) {
                if let Err(error) = row {
                    check(&error, &path);
                }
            }
        });
    }
}

/// However the files of a token cache are damaged, the tokens that are read are right.
#[test]
fn damaged_shards() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("a.txt");
    fs::write(
        &text,
        "It was the best of times, it was the worst of times.",
    )
    .unwrap();
    let tokenizer = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
    let prepare = || {
        let cache = folder.path().join("cache");
        let options = PrepareOptions::new("test", [&*text], &tokenizer, cache);
        TokenShards::prepare(&options).unwrap()
    };
    let ids = |shards: &TokenShards| {
        let mut ids = Vec::new();
        shards.read(0, shards.tokens() as usize, &mut ids).unwrap();
        ids
    };
    let expected = ids(&prepare());
    each(1000, |mutator| {
        let shards = prepare();
        let name = *mutator.choose(&["manifest.json", "00000.bin"]);
        let path = shards.folder().join(name);
        let whole = fs::read(&path).unwrap();
        let damaged = match std::str::from_utf8(&whole) {
            Ok(json) if name == "manifest.json" => mutator.json(json),
            _ => mutator.bytes(&whole),
        };
        fs::write(&path, damaged).unwrap();
        assert_eq!(ids(&prepare()), expected, "{name}");
        // A manifest without checksums is one of an older version, which the next damage would meet.
        fs::write(&path, whole).unwrap();
    });
}
