//! `infer eval`, on the command line.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::encode::requests;
use super::error::{EvalError, cannot};
use super::metrics::{Metric, metrics};
use super::score::Score;
use super::scoring::{Scored, ScoringArgs};
use super::table::table;
use super::task::{Document, Question, Task};
use crate::atomic_file;
use crate::cli::{CliError, say};

const EXAMPLES: &str = "\
Examples:
  The paper's table, with data fetched from the hub:
      infer eval --model goombalab/Phi-Mamba --tokenizer microsoft/phi-1_5

  A first look at two tasks, with data from a folder:
      infer eval --model runs/tiny/student --tasks piqa,arc_easy --data eval-data --limit 100";

/// Evaluates a model on the paper's six tasks, without examples (zero-shot).
///
/// The tasks are lm-evaluation-harness's, to the letter: its prompts, its tokens where context and
/// continuation meet, its metrics and their standard errors. The result is a table like its own, on
/// standard output.
///
/// An evaluation that is interrupted goes on where it was, give or take ten seconds, when it is
/// started again.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct EvalArgs {
    #[command(flatten)]
    scoring: ScoringArgs,

    /// The tasks, separated by commas; all of them if none is named
    #[arg(long, value_delimiter = ',', value_name = "TASK,...")]
    tasks: Vec<Task>,

    /// A folder with the tasks' data, in place of the Hugging Face hub
    ///
    /// It holds TASK.jsonl (or .jsonl.gz, .jsonl.zst, .json.gz, .parquet) with the fields that the data
    /// set has on the hub.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,

    /// Only the first documents of each task
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<usize>,
}

/// A task, its documents, and later what the model made of each of their prompts.
type Evaluated<S> = (Task, Vec<Document>, S);

impl EvalArgs {
    /// Does what the command line says. The data is read before the model, so that a mistake in it is
    /// told soon.
    ///
    /// # Errors
    /// Every [`CliError`].
    pub fn run(self) -> Result<(), CliError> {
        if self.limit == Some(0) {
            return Err(EvalError::Limit.into());
        }
        let mut tasks = self.tasks.clone();
        if tasks.is_empty() {
            tasks = <Task as clap::ValueEnum>::value_variants().into();
        }
        let documents = tasks.into_iter().map(|task| {
            let files = match &self.data {
                Some(folder) => vec![task.file_in(folder)?],
                None => fetch(task)?,
            };
            Ok((task, task.read(&files, self.limit)?, ()))
        });
        let documents: Vec<Evaluated<()>> = documents.collect::<Result<_, EvalError>>()?;

        let mut scored = self.scoring.score(|tokenizer, max_length| {
            let prompts = documents.iter().flat_map(|(_, documents, _)| documents);
            let prompts = prompts.flat_map(|it| &it.prompts);
            let requests = requests(prompts, tokenizer, max_length)?;
            Ok(((), requests))
        })?;
        let mut scores = std::mem::take(&mut scored.scores).into_iter();
        let evaluated: Vec<Evaluated<Vec<Vec<Score>>>> = documents
            .into_iter()
            .map(|(task, documents, ())| {
                let of_document = |it: &Document| scores.by_ref().take(it.prompts.len()).collect();
                let scores = documents.iter().map(of_document).collect();
                (task, documents, scores)
            })
            .collect();
        self.report(&evaluated, scored)
    }

    fn report(
        &self,
        evaluated: &[Evaluated<Vec<Vec<Score>>>],
        scored: Scored<()>,
    ) -> Result<(), CliError> {
        let results = evaluated.iter();
        let results: Vec<(Task, Vec<Metric>)> = results
            .map(|(task, documents, scores)| (*task, metrics(documents, scores)))
            .collect();
        say(&table(&results))?;
        let count: usize = evaluated
            .iter()
            .map(|(_, documents, _)| documents.len())
            .sum();
        let seconds = scored.time.as_secs_f64();
        let rate = count as f64 / seconds.max(1e-9);
        match scored.went_on {
            false => eprintln!("{count} documents in {seconds:.1} s, {rate:.1} documents/s"),
            true => eprintln!("{count} documents, the rest of them in {seconds:.1} s"),
        }
        if let Some(path) = &self.scoring.json {
            let samples = evaluated.iter().map(|(task, documents, scores)| {
                let both = documents.iter().zip(scores);
                let samples: Vec<Value> = both.map(|(it, scores)| sample(it, scores)).collect();
                (task.to_string(), Value::from(samples))
            });
            let results = results.iter().map(|(task, metrics)| {
                let numbers = metrics.iter().flat_map(|metric| {
                    let stderr = format!("{}_stderr", metric.name);
                    [
                        (metric.name.to_owned(), json!(metric.value)),
                        (stderr, json!(metric.stderr)),
                    ]
                });
                (task.to_string(), Value::Object(numbers.collect()))
            });
            let report = json!({
                "model": self.scoring.model,
                "backend": scored.backend.name(),
                "max_length": scored.max_length,
                "limit": self.limit,
                "n_shot": 0,
                "seconds": seconds,
                "results": results.collect::<Map<_, _>>(),
                "samples": samples.collect::<Map<_, _>>(),
            });
            write_report(path, &report)?;
        }
        scored.done();
        Ok(())
    }
}

/// The files of a task on the hub, or in its cache.
fn fetch(task: Task) -> Result<Vec<PathBuf>, EvalError> {
    let source = task.source();
    let files = model::Hub::from_env()
        .and_then(|hub| hub.dataset(source.dataset, source.config, source.split));
    files.map_err(|reason| EvalError::Hub {
        task,
        reason: reason.into(),
    })
}

fn sample(document: &Document, scores: &[Score]) -> Value {
    let log_likelihoods: Vec<f64> = scores.iter().map(|it| it.log_likelihood).collect();
    match &document.question {
        Question::Word => json!({
            "log_likelihood": log_likelihoods[0],
            "is_greedy": scores[0].is_greedy,
        }),
        Question::Choice { gold, .. } | Question::Context { gold } => json!({
            "log_likelihoods": log_likelihoods,
            "gold": gold,
        }),
    }
}

/// Writes the results in numbers.
pub fn write_report(path: &Path, report: &Value) -> Result<(), EvalError> {
    atomic_file::write(path, format!("{report:#}\n").as_bytes()).map_err(cannot("write", path))
}
