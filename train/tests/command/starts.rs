//! Where and how a run may be started.

use super::*;

const PHI_TEXT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../assets/text/pd-validation.json.gz"
);

fn student(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("student/model.safetensors")).expect("an exported student")
}

/// If several runs start in one folder at the same time, one wins, and its result is that of a single start.
#[test]
fn one_of_several_starts_wins() {
    let parent = folder();
    let (run, alone) = (parent.path().join("run"), parent.path().join("alone"));
    let start = || {
        let mut command = small(&run, &[]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("a program")
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    let mut won = 0;
    for child in children {
        let output = child.wait_with_output().expect("an end");
        let said = stderr(&output);
        if output.status.success() {
            won += 1;
        } else {
            assert_eq!(output.status.code(), Some(1), "{said}");
            let refused = ["another process is working", "holds a run already"];
            assert!(refused.iter().any(|words| said.contains(words)), "{said}");
        }
    }
    assert_eq!(won, 1);
    assert!(
        small(&alone, &[])
            .output()
            .expect("a program")
            .status
            .success()
    );
    assert!(student(&run) == student(&alone));
}

/// A run that was begun with relative paths can be resumed from any folder.
#[test]
fn a_run_is_resumed_from_another_folder() {
    let parent = folder();
    let (here, there) = (parent.path().join("here"), parent.path().join("there"));
    for folder in [&here, &there] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::copy(PHI_TEXT, here.join("text.json.gz")).unwrap();
    let weights = here.join("teacher");
    std::fs::create_dir(&weights).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(PHI_TINY).join(file), weights.join(file)).unwrap();
    }
    // Other text and another teacher by the same names, which are not taken.
    std::fs::write(there.join("text.json.gz"), "no gzip").unwrap();
    std::fs::create_dir(there.join("teacher")).unwrap();
    let set = [
        "data.train=text.json.gz",
        "data.validation=./text.json.gz",
        "data.cache=cache",
        "data.tokenizer=teacher/tokenizer.json",
        "teacher.model=teacher",
    ];
    let output = small(Path::new("run"), &set)
        .current_dir(&here)
        .output()
        .expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    let run = here.join("run");
    let expected = student(&run);
    std::fs::remove_file(run.join("summary.json")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/stage3-step0000002")).unwrap();
    let mut again = train(&["--backend", "flex", "--resume", "../here/run"]);
    let output = again.current_dir(&there).output().expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(student(&run) == expected);
    assert!(here.join("cache").exists() && !there.join("cache").exists());
}

/// The cache of tokens is never in a folder that another user can make first; an error names the key to change.
#[test]
#[cfg(unix)]
fn without_a_home_the_cache_must_be_named() {
    let parent = folder();
    let run = parent.path().join("run");
    for home in ["/dev/null/home", "relative"] {
        let mut command = small(&run, &["data.cache="]);
        command.env("HOME", home).env_remove("XDG_CACHE_HOME");
        command.current_dir(parent.path());
        let refused = failure(command, 1);
        assert!(refused.contains("data.cache"), "{home}: {refused}");
        assert!(!run.exists() && !parent.path().join("relative").exists());
    }
}

/// The check comes before anything is tokenised.
#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_cannot_be_written_is_said_at_once() {
    let refused = failure(small(Path::new("/proc"), &[]), 1);
    assert!(
        refused.contains("/proc") && refused.contains("--out"),
        "{refused}"
    );
}
