//! Saved models have checksums. If a file differs from its checksum, loading fails, and the error names the file.

use std::fs;

use burn::tensor::DType;
use model::manifest::{self, MANIFEST, ManifestError, Verified};

use super::*;

/// The name of the file for which a folder is refused.
fn changed(folder: &Path) -> String {
    let error = load_student(folder).expect_err("a changed file");
    let said = error.to_string();
    assert!(said.contains("remove SHA256SUMS"), "{said}");
    let WeightsError::Manifest(ManifestError::Changed { path, .. }) = error else {
        panic!("{error:?}")
    };
    path.file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned()
}

#[test]
fn every_file_of_a_saved_model_is_compared() {
    let (config, model) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    for limit in [None, Some(40_000)] {
        let out = tempfile::tempdir().expect("a folder");
        match limit {
            None => model::save(&config, &model, out.path()),
            Some(limit) => model::save_in_shards(&config, &model, DType::F32, limit, out.path()),
        }
        .expect("saved");
        // As an export puts a tokenizer beside the model.
        fs::write(out.path().join("tokenizer.json"), "{}").expect("written");
        manifest::add(out.path(), &["tokenizer.json"]).expect("listed");
        let Verified::Files(names) = manifest::verify(out.path()).expect("equal") else {
            panic!("no manifest")
        };
        let files = fs::read_dir(out.path()).expect("a folder").count();
        assert_eq!(names.len() + 1, files, "{names:?}");
        load_student(out.path()).expect("a student");
        for name in names {
            let path = out.path().join(&name);
            let whole = fs::read(&path).expect("a file");
            let mut damaged = whole.clone();
            // One bit of the last number, or of the last sign.
            let last = damaged.len() - 1;
            damaged[last] ^= 1;
            fs::write(&path, &damaged).expect("written");
            // What a loader does not read, it does not compare.
            if name == "tokenizer.json" || name.ends_with(".py") {
                load_student(out.path()).expect("a student");
                let error = manifest::verify_files(out.path(), &[&name]);
                assert!(matches!(error, Err(ManifestError::Changed { .. })));
            } else {
                assert_eq!(changed(out.path()), name);
            }
            fs::write(&path, &whole).expect("written");
        }
    }
}

/// A deliberate change is accepted once the manifest is gone, and a model that is saved over another has its own.
#[test]
fn deliberate_changes() {
    let (config, model) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    let out = tempfile::tempdir().expect("a folder");
    model::save(&config, &model, out.path()).expect("saved");
    let path = out.path().join("config.json");
    let text = fs::read_to_string(&path).expect("a configuration");
    fs::write(&path, text + "\n").expect("written");
    assert_eq!(changed(out.path()), "config.json");
    assert!(model::describe(out.path()).is_err());
    fs::remove_file(out.path().join(MANIFEST)).expect("removed");
    load_student(out.path()).expect("a student");
    assert_eq!(
        manifest::verify(out.path()).expect("none"),
        Verified::Absent
    );

    fs::write(out.path().join(MANIFEST), "cut").expect("written");
    let error = load_student(out.path()).expect_err("a cut manifest");
    assert!(
        matches!(
            error,
            WeightsError::Manifest(ManifestError::Unreadable { .. })
        ),
        "{error}"
    );
    for _ in 0..2 {
        model::save(&config, &model, out.path()).expect("saved");
        assert!(
            manifest::verify(out.path())
                .expect("equal")
                .covers("config.json")
        );
    }
    // One form of the weights in the place of another.
    model::save_in_shards(&config, &model, DType::F32, 40_000, out.path()).expect("saved");
    assert!(
        !manifest::verify(out.path())
            .expect("equal")
            .covers("model.safetensors")
    );
    load_student(out.path()).expect("a student");
}
