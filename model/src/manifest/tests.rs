use std::io::Write;

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn what_changed_is_named() {
    let folder = folder(&[("a", "abc"), ("deep/b", ""), ("c", "not listed")]);
    let path = folder.path();
    assert_eq!(verify(path).unwrap(), Verified::Absent);
    write(path, &["./deep/b", "a", MANIFEST]).unwrap();
    let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
    // The published examples of SHA-256.
    let expected = "\
        ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n\
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  deep/b\n";
    assert_eq!(text, expected);
    let both = Verified::Files(vec!["a".into(), "deep/b".into()]);
    assert_eq!(verify(path).unwrap(), both);
    assert!(both.covers("a") && !both.covers("c"));

    fs::write(path.join("a"), "abd").unwrap();
    let error = verify(path).unwrap_err().to_string();
    assert!(
        error.contains("/a: ") && error.contains(MANIFEST),
        "{error}"
    );
    let some = verify_files(path, &["deep/b", "c"]).unwrap();
    assert_eq!(some, Verified::Files(vec!["deep/b".into()]));
    add(path, &["a", "c"]).unwrap();
    assert!(verify(path).unwrap().covers("c"));
    fs::remove_file(path.join("deep/b")).unwrap();
    let error = verify(path).unwrap_err();
    assert!(matches!(error, ManifestError::Missing { .. }), "{error}");
    // What is gone on purpose is no longer listed.
    add(path, &["c"]).unwrap();
    let known = Verified::Files(vec!["a".into(), "c".into()]);
    assert_eq!(verify(path).unwrap(), known);
    for name in ["../a", "/a", "", "."] {
        let error = write(path, &[name]).unwrap_err();
        assert!(matches!(error, ManifestError::Name { .. }), "{name}");
    }
}

#[test]
fn what_sha256sum_writes_is_read_and_nothing_else() {
    let files = [("a", "abc"), ("back\\slash\nline", "abc"), ("*", "abc")];
    let folder = folder(&files);
    let path = folder.path();
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let upper = digest.to_uppercase();
    write(path, &files.map(|(name, _)| name)).unwrap();
    assert!(verify(path).unwrap().covers(files[1].0));
    for (text, expected) in [
        (format!("{digest}  a\n"), Some(1)),
        (
            format!("# by hand\n{upper} *./a\r\n{digest}  {MANIFEST}\n"),
            Some(1),
        ),
        (
            format!("{digest}  a\n{digest}  *\n\\{digest}  back\\\\slash\\nline\n"),
            Some(3),
        ),
        (format!("SHA256 (a) = {upper}\n"), Some(1)),
        (
            format!("\\SHA256 (back\\\\slash\\nline) = {digest}\n\n"),
            Some(1),
        ),
        (format!("SHA256 (a) = {}\n", &digest[1..]), None),
        (format!("SHA256 (../a) = {digest}\n"), None),
        (format!("SHA1 (a) = {digest}\n"), None),
        (String::new(), None),
        (format!("{digest}  a"), None),
        (format!("{digest} a\n"), None),
        (format!("{}  a\n", &digest[1..]), None),
        (format!("{digest}  ../a\n"), None),
        (format!("{digest}  /dev/zero\n"), None),
        (format!("\\{digest}  a\\x\n"), None),
        (format!("{}é{digest}  a\n", &digest[..63]), None),
    ] {
        fs::write(path.join(MANIFEST), &text).unwrap();
        match (verify(path), expected) {
            (Ok(Verified::Files(names)), Some(n)) => assert_eq!(names.len(), n, "{text}"),
            (Err(ManifestError::Unreadable { .. }), None) => {}
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
    // Of two checksums for one file, one is wrong.
    fs::write(
        path.join(MANIFEST),
        format!("{digest}  a\n{}  a\n", "0".repeat(64)),
    )
    .unwrap();
    let error = verify(path).unwrap_err();
    assert!(matches!(error, ManifestError::Changed { .. }), "{error}");
    // One that cannot be understood does not stop what is written anew.
    fs::write(path.join(MANIFEST), [0xff, 0xfe]).unwrap();
    add(path, &["a"]).unwrap();
    assert_eq!(verify(path).unwrap(), Verified::Files(vec!["a".into()]));
}

/// What a model's folder may have from elsewhere does not make it unreadable, and what is listed there is compared.
#[test]
fn manifests_of_others() {
    let folder = folder(&[("a.bin", "abc"), ("b.bin", "abc")]);
    let path = folder.path();
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let wrong = "0".repeat(64);
    for (text, expected) in [
        (format!("SHA256 (a.bin) = {digest}\n"), Ok(true)),
        (format!("SHA2-256(a.bin)= {digest}\r\n"), Ok(true)),
        (format!("\u{feff}{digest}  a.bin\n"), Ok(true)),
        (
            format!(
                "{wrong}  ../a.bin\n{wrong} */abs/a.bin\nSHA256 (../a.bin) = {wrong}\n{digest}  a.bin\n"
            ),
            Ok(true),
        ),
        (
            format!("MD5 (a.bin) = 0123\nSHA512 (b.bin) = 0123\n{digest}  a.bin\n"),
            Ok(true),
        ),
        (
            format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{digest}  a.bin\n"),
            Ok(true),
        ),
        // Of a file that is not there or not asked for.
        (format!("{wrong}  b.bin\n{wrong}  c\n"), Ok(false)),
        // A last line without an end.
        (format!("{digest}  a.bin"), Ok(true)),
        (format!("{wrong}  b.bin\n{wrong}  ../c"), Ok(false)),
        (String::new(), Ok(false)),
        // Of the file itself, and not to be understood.
        (format!("{} a.bin\n", &digest[1..]), Err(())),
        (format!("{digest} a.bin\n"), Err(())),
        (format!("SHA256 (a.bin) = {}\n", &digest[1..]), Err(())),
        // Cut.
        (format!("{digest}  not-a-whole-nam"), Err(())),
        (digest[..20].to_owned(), Err(())),
    ] {
        fs::write(path.join(MANIFEST), &text).unwrap();
        match (verify_files(path, &["a.bin"]), expected) {
            (Ok(verified), Ok(covers)) => assert_eq!(verified.covers("a.bin"), covers, "{text}"),
            (Err(ManifestError::Unreadable { .. }), Err(())) => {}
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
    for text in [
        format!("SHA256 (a.bin) = {wrong}\n"),
        format!("{wrong}  a.bin"),
    ] {
        fs::write(path.join(MANIFEST), &text).unwrap();
        let error = verify_files(path, &["a.bin"]).unwrap_err();
        assert!(matches!(error, ManifestError::Changed { .. }), "{error}");
    }
    // A name that is no UTF-8.
    let latin = [b"0123  \xe9\n", digest.as_bytes(), b"  a.bin\n"].concat();
    fs::write(path.join(MANIFEST), latin).unwrap();
    assert!(verify_files(path, &["a.bin"]).unwrap().covers("a.bin"));
    #[cfg(unix)]
    {
        fs::remove_file(path.join(MANIFEST)).unwrap();
        std::os::unix::fs::symlink("gone", path.join(MANIFEST)).unwrap();
        let error = verify_files(path, &["a.bin"]).unwrap_err();
        assert!(matches!(error, ManifestError::Unreadable { .. }), "{error}");
    }
}

/// What was hashed while it was written is not read again: a write error is found, and not listed as right.
#[test]
fn known_checksums() {
    let folder = folder(&[("b", "abc")]);
    let path = folder.path();
    let mut file = Hashing::new(File::create(path.join("a")).unwrap());
    file.write_all(b"ab").unwrap();
    file.write_all(b"c").unwrap();
    let known = Digests::from([("./a".to_owned(), file.finish())]);
    assert_eq!(known["./a"], hash(path.join("b")).unwrap());
    write_known(path, &["a", "b"], known.clone()).unwrap();
    assert_eq!(
        verify(path).unwrap(),
        Verified::Files(vec!["a".into(), "b".into()])
    );
    fs::write(path.join("a"), "abd").unwrap();
    write_known(path, &["a", "b"], known.clone()).unwrap();
    let error = verify(path).unwrap_err();
    assert!(matches!(error, ManifestError::Changed { .. }), "{error}");
    fs::remove_file(path.join("b")).unwrap();
    add_known(path, known).unwrap();
    assert!(matches!(verify(path), Err(ManifestError::Changed { .. })));
    let outside = Digests::from([("../a".to_owned(), String::new())]);
    let error = add_known(path, outside).unwrap_err();
    assert!(matches!(error, ManifestError::Name { .. }), "{error}");
}
