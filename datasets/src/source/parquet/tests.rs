use std::fs;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::source::{Documents, source_files};

fn codecs() -> [Compression; 7] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::ZSTD(Default::default()),
        Compression::LZ4_RAW,
    ]
}

/// A file with a column `n` of numbers and a column of this declaration with `texts`, half of them in each
/// of two row groups.
fn write(
    path: &Path,
    column: &str,
    texts: &[Option<&str>],
    properties: parquet::file::properties::WriterPropertiesBuilder,
) {
    let schema = format!("message schema {{ required int64 n; {column}; }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let properties = Arc::new(properties.build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for texts in texts.chunks(texts.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().unwrap();
        let mut n = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..texts.len() as i64).collect();
        n.typed::<Int64Type>()
            .write_batch(&numbers, None, None)
            .unwrap();
        n.close().unwrap();
        let mut text = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        let values: Vec<ByteArray> = texts.iter().flatten().map(|&text| text.into()).collect();
        let levels = Some(&levels[..]).filter(|_| column.starts_with("optional"));
        text.typed::<ByteArrayType>()
            .write_batch(&values, levels, None)
            .unwrap();
        text.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn properties() -> parquet::file::properties::WriterPropertiesBuilder {
    WriterProperties::builder()
}

/// Every compression, and both ways in which writers declare text, encode it and lay out its pages.
#[test]
fn every_kind_of_file_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let texts: Vec<String> = (0..500)
        .map(|i| format!("naïve {} 🦀\n", i % 300))
        .collect();
    let texts: Vec<Option<&str>> = texts.iter().map(|text| Some(&**text)).collect();
    for codec in codecs() {
        for column in [
            "optional binary text (UTF8)",
            "required binary text (STRING)",
            "optional binary text",
            "required binary text",
        ] {
            for (version, dictionary) in [
                (WriterVersion::PARQUET_1_0, true),
                (WriterVersion::PARQUET_2_0, true),
                (WriterVersion::PARQUET_2_0, false),
            ] {
                let properties = properties()
                    .set_compression(codec)
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary);
                write(&path, column, &texts, properties);
                let files = source_files(std::slice::from_ref(&path)).unwrap();
                let read: Vec<String> = Documents::new(files).map(Result::unwrap).collect();
                let expected: Vec<&str> = texts.iter().copied().flatten().collect();
                assert_eq!(read, expected, "{codec:?} {column} {version:?}");
            }
        }
    }
    let rows: Vec<_> = parquet_rows(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 500);
    assert_eq!(
        Value::from(rows[251].clone()),
        json!({ "n": 1, "text": "naïve 251 🦀\n" })
    );
}

#[test]
fn rows_without_text_are_named_or_skipped() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    write(
        &path,
        "optional binary text (UTF8)",
        &[Some("a"), None, Some(""), Some("b")],
        properties(),
    );
    let files = source_files(&[path]).unwrap();
    let error = Documents::new(files.clone()).find_map(Result::err).unwrap();
    assert!(
        matches!(error, DataError::NoTextInRow { row: 2, .. }),
        "{error}"
    );
    let texts: Vec<String> = Documents::skipping(files, 1).map(Result::unwrap).collect();
    assert_eq!(texts, ["a", "", "b"]);
}

#[test]
fn what_is_no_table_of_texts_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let error = |path: &Path| {
        let files = source_files(&[path.into()]).unwrap();
        Documents::new(files)
            .find_map(Result::err)
            .unwrap()
            .to_string()
    };
    write(
        &path,
        "optional binary content (UTF8)",
        &[Some("a")],
        properties(),
    );
    let no_column = error(&path);
    assert!(
        no_column.contains("a.parquet") && no_column.contains("\"content\" (text)"),
        "{no_column}"
    );
    fs::write(&path, "PAR1 is no table PAR1").unwrap();
    let no_table = error(&path);
    assert!(no_table.contains("a.parquet"), "{no_table}");
}
