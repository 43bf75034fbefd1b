//! Recognises the files that this project's programs write. They may be below a folder of text, but are not text to
//! train on.

use std::path::Path;

use crate::shards::{MANIFEST, shard_name};

/// What a run of `train` writes into its folder.
const OF_A_RUN: [&str; 6] = [
    "checkpoints",
    "config.toml",
    "metrics.jsonl",
    "report.html",
    "student",
    "summary.json",
];

/// Whether an entry of a folder is a run's own, a checkpoint, a model or a folder of tokens, by its name and the
/// files beside it or in it.
pub(super) fn is_own(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let beside = |other: &str| folder.join(other).exists();
    if OF_A_RUN.contains(&name) {
        return beside("config.toml") && (beside("metrics.jsonl") || beside("checkpoints"));
    }
    // The table of `train ablate`, among its runs.
    if name == "table.json" {
        return beside("table.md");
    }
    let holds = |inside: &str| path.join(inside).exists();
    let weights = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ];
    path.is_dir()
        && (holds("progress.toml") && holds("optimizer.safetensors")
            || holds(MANIFEST) && holds(&shard_name(0))
            || holds("config.json") && weights.into_iter().any(holds))
}

#[cfg(test)]
mod tests {
    use super::super::source_files;
    use crate::error::DataError;

    /// A run, its checkpoints, tokens and models, in a folder of text or around it.
    #[test]
    fn a_run_below_a_folder_of_text_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let write = |names: &[&str]| {
            for name in names {
                let path = folder.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "{\"text\": \"a\"}\n").unwrap();
            }
        };
        write(&[
            "runs/a/config.toml",
            "runs/a/metrics.jsonl",
            "runs/a/summary.json",
            "runs/a/student/vocab.json",
            "runs/a/checkpoints/stage1-step0000001/student/vocab.json",
            "runs/table.json",
            "runs/table.md",
            "copied/stage1-step0000001/progress.toml",
            "copied/stage1-step0000001/optimizer.safetensors",
            "copied/stage1-step0000001/student/config.json",
            "cache/train-1/manifest.json",
            "cache/train-1/00000.bin",
            "model/config.json",
            "model/vocab.json",
            "model/model.safetensors",
        ]);
        let files = || source_files(&[folder.path().into()]);
        let Err(DataError::NoTextFiles { passed_over, .. }) = files() else {
            panic!("files of a run were taken for text")
        };
        assert!(
            passed_over.contains("9 of runs, models and token caches (cache"),
            "{passed_over}"
        );

        // Text among it counts, and so does the same name where there is no run.
        let text = [
            "runs/a/text.jsonl",
            "metrics.jsonl",
            "table.json",
            "student/a.txt",
        ];
        write(&text);
        let found = files().unwrap();
        let names = found.iter().map(|file| {
            let name = file.path.strip_prefix(folder.path()).unwrap();
            name.to_str().unwrap()
        });
        let mut expected = text.to_vec();
        expected.sort_unstable();
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
