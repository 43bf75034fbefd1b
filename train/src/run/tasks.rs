//! Scores tasks within a run: the student is written to disk, and the program `infer` scores it.
//!
//! The tasks are exactly those of `infer eval`, since that program scores them; this crate does not define them. It
//! runs in parallel with the run's own process, on the same backend, and needs memory for another student.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use kernels::TrainBackend;
use model::PhiMamba;
use serde_json::Value;

use super::{Run, stop_requested};
use crate::config::Evaluation;
use crate::error::{TrainError, io_error};

/// The folder, inside the run folder, with the student that is scored. It exists only while it is scored.
const SCORED: &str = "scored";
/// The time between two checks whether the program has ended and whether to stop.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The number of last bytes of the program's output that are shown if it fails.
const SAID: usize = 2000;

impl<B: TrainBackend> Run<B> {
    /// The scores of `student` in the configured tasks, by task and metric, such as `piqa/acc`; `None` if asked to
    /// stop. The map is empty if no task is configured, or if the tasks cannot be scored: this is noted, and the run
    /// continues.
    ///
    /// # Errors
    /// [`TrainError`] if the student cannot be written.
    pub(super) fn task_scores(
        &mut self,
        student: &PhiMamba<B::InnerBackend>,
    ) -> Result<Option<BTreeMap<String, f64>>, TrainError> {
        let evaluation = self.options.config.evaluation.clone();
        if evaluation.task_names().is_empty() {
            return Ok(Some(BTreeMap::new()));
        }
        self.held.check()?;
        let folder = self.options.folder.join(SCORED);
        (self.teacher_files).export(&self.student_config, student, &folder)?;
        let stops = || stop_requested(&self.options, &self.watch);
        let scored = score(&evaluation, &folder, &self.options.backend, stops);
        fs::remove_dir_all(&folder).map_err(io_error(&folder))?;
        match scored {
            Ok(scores) => Ok(scores),
            Err(reason) => {
                self.note(format!(
                    "warning: the tasks of evaluation.tasks were not scored: {reason}"
                ))?;
                Ok(Some(BTreeMap::new()))
            }
        }
    }
}

/// Checks that the tasks can probably be scored: there is the program, and the folder of their data.
///
/// # Errors
/// [`TrainError::Mismatch`] names the key.
pub(super) fn check(evaluation: &Evaluation) -> Result<(), TrainError> {
    if evaluation.task_names().is_empty() {
        return Ok(());
    }
    let (program, data) = (program(&evaluation.infer), &evaluation.task_data);
    let paths = env::var_os("PATH").unwrap_or_default();
    let is_there = if program.components().count() > 1 {
        program.is_file()
    } else {
        env::split_paths(&paths).any(|folder| folder.join(&program).is_file())
    };
    if !is_there {
        let place = if program.components().count() > 1 {
            format!("{} is no file", program.display())
        } else {
            format!(
                "there is no {} beside this program or in PATH",
                program.display()
            )
        };
        return Err(TrainError::Mismatch(format!(
            "evaluation.tasks are scored by the program `infer` of this project, and {place}; set evaluation.infer to it, \
             or evaluation.tasks to nothing"
        )));
    }
    if !data.is_empty() && !Path::new(data).is_dir() {
        return Err(TrainError::Mismatch(format!(
            "evaluation.task_data is \"{data}\", which is no folder; set it to the folder with the tasks' data, or to \
             nothing to fetch them from the hub"
        )));
    }
    Ok(())
}

/// The scores of the student in `folder`; `None` if `stops` returns true. The error says why there are no scores.
fn score(
    evaluation: &Evaluation,
    folder: &Path,
    backend: &str,
    stops: impl Fn() -> bool,
) -> Result<Option<BTreeMap<String, f64>>, String> {
    let program = program(&evaluation.infer);
    let result = folder.join("scores.json");
    let mut command = Command::new(&program);
    command.arg("eval").arg("--model").arg(folder);
    let tasks = evaluation.task_names().join(",");
    command.args(["--backend", backend, "--tasks", &tasks]);
    if !evaluation.task_data.is_empty() {
        command.args(["--data", &evaluation.task_data]);
    }
    if evaluation.task_limit > 0 {
        command.args(["--limit", &evaluation.task_limit.to_string()]);
    }
    command.arg("--json").arg(&result);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| {
        format!(
            "{}: {error}; evaluation.infer names the program infer of this project",
            program.display()
        )
    })?;
    let said = said(&mut child);
    let ended = loop {
        match child.try_wait() {
            Ok(None) if stops() => {
                // It has saved its scores, and will continue with them the next time.
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            Ok(None) => thread::sleep(ASK_EVERY),
            Ok(Some(ended)) => break ended,
            Err(error) => return Err(error.to_string()),
        }
    };
    let said = said.join().unwrap_or_default();
    if !ended.success() {
        return Err(format!("{} has failed: {}", program.display(), said.trim()));
    }
    let text = fs::read(&result).map_err(|error| format!("{}: {error}", result.display()))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok(Some(scores(&json)))
}

/// The program at the configured path. By default the one in the folder of this program, or else the one in `PATH`.
fn program(configured: &str) -> PathBuf {
    if !configured.is_empty() {
        return PathBuf::from(configured);
    }
    let name = format!("infer{}", env::consts::EXE_SUFFIX);
    let own = env::current_exe().unwrap_or_default();
    let beside = own.with_file_name(&name);
    if beside.is_file() {
        beside
    } else {
        PathBuf::from(name)
    }
}

/// Collects the last output of `child` while it works.
fn said(child: &mut Child) -> thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let mut all = vec![];
        if let Some(mut stderr) = stderr {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut bytes) {
                all.extend(&bytes[..read]);
                let beyond = all.len().saturating_sub(SAID);
                all.drain(..beyond);
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// The metrics in what `infer eval --json` writes, without their standard errors.
fn scores(json: &Value) -> BTreeMap<String, f64> {
    let tasks = json["results"].as_object().into_iter().flatten();
    let metrics = tasks.flat_map(|(task, metrics)| {
        let metrics = metrics.as_object().into_iter().flatten();
        let metrics = metrics.filter(|(name, _)| !name.ends_with("_stderr"));
        metrics.filter_map(move |(name, value)| Some((format!("{task}/{name}"), value.as_f64()?)))
    });
    metrics.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    #[test]
    fn metrics_are_named_by_their_task() {
        let json = serde_json::json!({"results": {
            "piqa": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.25, "acc_norm_stderr": null},
            "lambada_openai": {"perplexity": 9.5, "acc": null},
        }});
        let expected = [
            ("lambada_openai/perplexity", 9.5),
            ("piqa/acc", 0.5),
            ("piqa/acc_norm", 0.25),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(scores(&json), BTreeMap::from(expected));
        assert!(scores(&serde_json::json!({"results": [1]})).is_empty());
        assert_eq!(program("/some/infer"), Path::new("/some/infer"));
    }

    #[test]
    fn a_program_or_a_folder_that_is_not_there_is_named_at_the_start() {
        let checked = |set: &[String]| {
            let config = Config::load(Source::Preset("tiny"), set).unwrap();
            check(&config.evaluation).map_err(|error| error.to_string())
        };
        let tasks = "evaluation.tasks=piqa".to_owned();
        let folder = tempfile::tempdir().unwrap();
        let infer = folder.path().join("infer");
        fs::write(&infer, "").unwrap();
        let infer = format!("evaluation.infer={}", infer.display());
        let data = format!("evaluation.task_data={}", folder.path().display());
        assert_eq!(checked(&[tasks.clone(), infer.clone(), data]), Ok(()));

        let absent = |key: &str| format!("{key}={}", folder.path().join("absent").display());
        let (no_infer, no_data) = (absent("evaluation.infer"), absent("evaluation.task_data"));
        // Without tasks neither is needed.
        assert_eq!(checked(&[no_infer.clone(), no_data.clone()]), Ok(()));
        for wrong in [&[tasks.clone(), no_infer][..], &[tasks, infer, no_data]] {
            let message = checked(wrong).unwrap_err();
            let key = wrong[wrong.len() - 1].split('=').next().unwrap();
            assert!(
                message.contains(key) && message.contains("absent"),
                "{message}"
            );
        }
    }
}
