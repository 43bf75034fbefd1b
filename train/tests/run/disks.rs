//! Disks that refuse to write: existing files stay, the error is one sentence, and the run can continue afterwards.

use std::io::ErrorKind;

use super::failures::error;
use super::*;

/// The error that the system gave, and the file it is about.
fn refused(error: TrainError) -> (PathBuf, ErrorKind) {
    match error {
        TrainError::Io { path, source } => (path, source.kind()),
        other => panic!("{other}"),
    }
}

/// The run of two stages that is disturbed, and its student when it is not.
fn undisturbed() -> (Config, Vec<u8>) {
    let folder = folder();
    let config = config_of_stages(&["stage2", "stage3"], &[]);
    run(config.clone(), folder.path());
    (config, student(folder.path()))
}

/// A file has the name of the folder of checkpoints. The error of the writing thread ends the run.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let (config, expected) = undisturbed();
    let folder = folder();
    let run = folder.path();
    let place = run.join("checkpoints");
    let blocked = {
        let place = place.clone();
        move || fs::write(&place, "a file").unwrap()
    };
    let (path, kind) = refused(error(acting(4, blocked, options(config, run, false))));
    assert!(path.starts_with(&place), "{}", path.display());
    assert_eq!(kind, ErrorKind::NotADirectory);
    assert!(!run.join("summary.json").exists());
    // Steps continued while the first checkpoint was tried, but not past the next checkpoint.
    let steps = metrics(run).into_iter();
    let steps = steps.filter(|record| record["kind"] == "step").count();
    assert!((2..=4).contains(&steps), "{steps}");
    fs::remove_file(&place).unwrap();
    resume(run);
    assert!(student(run) == expected);
}

/// Tokens are deleted during a run: the run continues to read the open files, and a later process makes the tokens
/// again.
#[test]
fn tokens_that_are_gone_are_made_again() {
    let (mut config, expected) = undisturbed();
    let (folder, cache) = (folder(), folder());
    let run = folder.path();
    config.data.cache = cache.path().display().to_string();
    let clear = {
        let cache = cache.path().to_owned();
        move || {
            for entry in fs::read_dir(&cache).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    fs::remove_dir_all(path).unwrap();
                }
            }
        }
    };
    // In the middle of the first stage; then before the second is done once more.
    let cleared = acting(5, clear, options(config.clone(), run, false));
    finish(cleared);
    assert!(student(run) == expected);

    fs::remove_file(run.join("summary.json")).unwrap();
    for name in checkpoints(run) {
        if name.starts_with("stage3") {
            fs::remove_dir_all(checkpoint(run, &name)).unwrap();
        }
    }
    let summary = resume(run);
    assert_eq!(notes(&summary), "");
    assert!(student(run) == expected);
    assert!(fs::read_dir(cache.path()).unwrap().count() > 0);
}

/// File systems of their own, which only the superuser can make. Without one, a test with them says so and ends.
#[cfg(target_os = "linux")]
mod mounted {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// A folder with something mounted on it, until it is dropped.
    struct Mounted(PathBuf);

    impl Mounted {
        /// `None` where this is not allowed.
        fn new(folder: &Path, arguments: &[&str]) -> Option<Self> {
            let mut mount = Command::new("mount");
            let status = mount.args(arguments).arg(folder).output();
            if status.is_ok_and(|output| output.status.success()) {
                return Some(Self(folder.to_owned()));
            }
            eprintln!("not tested: this process may not mount");
            None
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let status = Command::new("umount").arg("-l").arg(&self.0).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
    }

    /// The disk has space for one checkpoint and the student, and then is full for some time.
    #[test]
    fn a_full_disk_is_waited_for() {
        let (mut config, expected) = undisturbed();
        config.checkpoint.keep = 1;
        let parent = folder();
        let Some(_disk) = Mounted::new(parent.path(), &["-t", "tmpfs", "-o", "size=200m", "tmpfs"])
        else {
            return;
        };
        let (run, filler) = (parent.path().join("run"), parent.path().join("filler"));
        let fill = move || {
            let full = fs::write(&filler, vec![1; 256 << 20]).unwrap_err();
            assert_eq!(full.kind(), ErrorKind::StorageFull);
            let filler = filler.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_secs(2));
                fs::remove_file(filler).unwrap();
            });
        };
        finish(acting(6, fill, options(config, &run, false)));
        assert!(student(&run) == expected);
        let mut steps = vec![];
        for record in metrics(&run) {
            if record["kind"] == "step" {
                let step = record["step"].as_u64().unwrap() as usize;
                steps.push((record["stage"].as_str().unwrap().to_owned(), step));
            }
        }
        let stage = |name: &'static str, n: usize| (1..=n).map(move |step| (name.to_owned(), step));
        let all = stage("stage2", STEPS[1]).chain(stage("stage3", STEPS[2]));
        assert_eq!(steps, all.collect::<Vec<_>>());
    }

    /// A folder that cannot be written is not waited for: the run ends with an error, and can continue when it is
    /// writable.
    #[test]
    fn a_read_only_folder_ends_the_run() {
        let (config, expected) = undisturbed();
        let folder = folder();
        let run = folder.path();
        let place = run.join("checkpoints");
        fs::create_dir(&place).unwrap();
        let path = place.display().to_string();
        let Some(disk) = Mounted::new(&place, &["--bind", &path]) else {
            return;
        };
        let arguments = ["-o", "remount,ro,bind"];
        let status = Command::new("mount").args(arguments).arg(&place).status();
        assert!(status.is_ok_and(|status| status.success()));
        // A folder of checkpoints is a run.
        config.write(&run.join("config.toml")).unwrap();
        let (path, kind) = refused(error(options(config, run, true)));
        assert!(path.starts_with(&place), "{}", path.display());
        assert_eq!(kind, ErrorKind::ReadOnlyFilesystem);
        assert_eq!(checkpoints(run), [""; 0]);
        drop(disk);
        resume(run);
        assert!(student(run) == expected);
    }
}
