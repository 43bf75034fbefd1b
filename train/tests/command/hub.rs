//! Runs on text from a local hub that fails and recovers.

use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tests::hub::{LocalHub, REVISION, listing, part};

use super::*;

const DATA: &str = "someone/text";
/// Each file has five or six sequences, and a run reads sixteen.
const FILES: [&str; 4] = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"];

fn text(file: &str) -> Vec<u8> {
    let line =
        |n| format!("{{\"text\": \"{file}, {n}: It was the best of times, it was the worst.\"}}\n");
    (0..8).map(line).collect::<String>().into_bytes()
}

/// How the hub fails.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// It is busy at the first two requests for the third file.
    Busy,
    /// It sends other bytes of the third file than it has announced.
    Altered,
}

fn hub(trouble: Trouble) -> LocalHub {
    let requests = AtomicUsize::new(0);
    LocalHub::serve(move |path, range| {
        if path == format!("/api/datasets/{DATA}/revision/main")
            || path == format!("/api/datasets/{DATA}/revision/{REVISION}")
        {
            return listing(FILES.into_iter());
        }
        let Some(file) = path.strip_prefix(&format!("/datasets/{DATA}/resolve/{REVISION}/")) else {
            return ("404 Not Found", String::new(), Vec::new());
        };
        let mut bytes = text(file);
        let hash = format!("X-Linked-Etag: \"{:x}\"", Sha256::digest(&bytes));
        let is_third = file == FILES[2];
        if is_third && trouble == Trouble::Busy && requests.fetch_add(1, Ordering::Relaxed) < 2 {
            return ("503 Service Unavailable", String::new(), Vec::new());
        }
        if is_third && trouble == Trouble::Altered {
            bytes[20] ^= 1;
        }
        part(&bytes, range, &hash)
    })
}

/// `command` with `hub` for its hub, and what it fetches and tokenises in `folder`.
fn on(hub: &LocalHub, folder: &Path, mut command: Command) -> Command {
    for variable in [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ] {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", hub.endpoint());
    command.env("HF_HOME", folder.join("hub"));
    command
}

/// A run in `folder` on the text of `hub`.
fn run(hub: &LocalHub, folder: &Path) -> Command {
    let cache = format!("data.cache={}", folder.join("tokens").display());
    let data = format!("data.train=hub:{DATA}");
    on(hub, folder, small(&folder.join("run"), &[&cache, &data]))
}

fn student(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("run/student/model.safetensors")).expect("an exported student")
}

/// A run waits for a busy hub. If a file is not what the hub has announced, the run ends with a message, keeps nothing
/// of that file, and continues to the same student after the hub has recovered.
#[test]
fn a_hub_that_fails_and_recovers_loses_nothing() {
    let parent = folder();
    let folder = |name: &str| {
        let folder = parent.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        folder
    };
    let [whole, busy, altered] = ["whole", "busy", "altered"].map(folder);
    for (folder, trouble) in [(&whole, Trouble::None), (&busy, Trouble::Busy)] {
        let output = run(&hub(trouble), folder).output().expect("a program");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(student(&busy) == student(&whole));

    let said = failure(run(&hub(Trouble::Altered), &altered), 1);
    assert!(
        said.contains(FILES[2]) && said.contains("SHA-256"),
        "{said}"
    );
    let checkpoints = std::fs::read_dir(altered.join("run/checkpoints")).expect("checkpoints");
    assert!(checkpoints.count() > 0, "it has trained on the first files");
    let mut again = train(&["--backend", "flex", "--resume"]);
    again.arg(altered.join("run"));
    let recovered = hub(Trouble::None);
    let output = on(&recovered, &altered, again).output().expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(student(&altered) == student(&whole));
    // What was fetched before is not fetched again.
    let first = recovered.requests().into_iter();
    assert_eq!(first.filter(|path| path.ends_with(FILES[0])).count(), 0);
}
