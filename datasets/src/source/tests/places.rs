//! Which files a path, a folder or a pattern means.

use super::*;

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

/// To open a pipe without a writer would wait for ever.
#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("text.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let refused = error(&pipe);
    assert!(matches!(refused, DataError::NotAFile { .. }), "{refused}");
    assert!(refused.to_string().contains("text.jsonl"), "{refused}");
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
    let parts = Parts::new(crate::source::inputs(&sources).unwrap(), 0, usize::MAX);
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
