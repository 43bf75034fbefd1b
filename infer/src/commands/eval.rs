//! `infer eval`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::CommandError;
use super::scoring::{Scored, ScoringArgs};
use crate::eval::{
    Document, EvalError, Metric, Question, Score, Source, Task, metrics, requests, table,
};

const EXAMPLES: &str = "\
Examples:
  The paper's table, with data fetched from the hub:
      infer eval --model goombalab/Phi-Mamba --tokenizer microsoft/phi-1_5

  A first look at two tasks, with data from a folder:
      infer eval --model runs/tiny/student --tasks piqa,arc_easy --data eval-data --limit 100

  What its teacher reaches with the last 64 tokens and the first 4 alone:
      infer eval --model assets/phi-tiny --control window=64,sinks=4 --tasks piqa,arc_easy --data eval-data";

/// Evaluates a model on the paper's six tasks, without examples (zero-shot).
///
/// The tasks are lm-evaluation-harness's, to the letter: its prompts, its tokens where context and
/// continuation meet, its metrics and their standard errors. The result is a table like its own, on
/// standard output.
///
/// An evaluation that was interrupted resumes when it is started again; at most the last ten seconds of
/// it are done twice. The scores until then are in the user's cache (XDG_CACHE_HOME, or .cache in HOME).
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    scoring: ScoringArgs,

    /// The tasks, separated by commas; the paper's six if none is named
    ///
    /// needle, needles, copy and mqar are probes of what a model finds again in texts of 256, 512, 1024 and 2048
    /// tokens, as far as --max-length goes. They need no data.
    #[arg(long, value_delimiter = ',', value_name = "TASK,...")]
    tasks: Vec<Task>,

    /// A folder with the tasks' data, in place of the Hugging Face hub
    ///
    /// It holds TASK.jsonl (or .jsonl.gz, .jsonl.zst, .json.gz, .parquet) with the fields that the data
    /// set has on the hub.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,

    /// Only the first documents of each task, and of each length of a probe
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<usize>,
}

/// A task, its documents, and the scores of each document's prompts.
type Evaluated = (Task, Vec<Document>, Vec<Vec<Score>>);

impl EvalArgs {
    /// Runs the command. The data is read before the model, so that errors in it are found early.
    pub fn run(self) -> Result<(), CommandError> {
        if self.limit == Some(0) {
            return Err(EvalError::Limit.into());
        }
        self.scoring.check()?;
        let tasks = if self.tasks.is_empty() {
            &Task::OF_THE_PAPER[..]
        } else {
            &self.tasks
        };
        let read = tasks.iter().map(|&task| {
            let files = match (task.source(), &self.data) {
                (None, _) => return Ok((task, None)),
                (Some(_), Some(folder)) => vec![task.file_in(folder)?],
                (Some(source), None) => fetch(task, source)?,
            };
            Ok((task, Some(task.read(&files, self.limit)?)))
        });
        let read = read.collect::<Result<Vec<_>, EvalError>>()?;

        let mut scored = self.scoring.score(|tokenizer, max_length| {
            let documents = read.into_iter().map(|(task, read)| match read {
                Some(documents) => Ok((task, documents)),
                None => Ok((task, task.make(tokenizer, max_length, self.limit)?)),
            });
            let documents = documents.collect::<Result<Vec<_>, EvalError>>()?;
            let prompts = documents.iter().flat_map(|(_, documents)| documents);
            let prompts = prompts.flat_map(|document| &document.prompts);
            let requests = requests(prompts, tokenizer, max_length)?;
            Ok((documents, requests))
        })?;
        let documents = std::mem::take(&mut scored.plan);
        let mut scores = std::mem::take(&mut scored.scores).into_iter();
        let evaluated = documents.into_iter().map(|(task, documents)| {
            let of_document =
                |document: &Document| scores.by_ref().take(document.prompts.len()).collect();
            let scores = documents.iter().map(of_document).collect();
            (task, documents, scores)
        });
        let evaluated: Vec<Evaluated> = evaluated.collect();
        self.report(&evaluated, scored)
    }

    fn report(
        &self,
        evaluated: &[Evaluated],
        scored: Scored<Vec<(Task, Vec<Document>)>>,
    ) -> Result<(), CommandError> {
        let results = evaluated
            .iter()
            .map(|(task, documents, scores)| (*task, metrics(documents, scores)));
        let results: Vec<(Task, Vec<Metric>)> = results.collect();
        let counts = evaluated.iter().map(|(_, documents, _)| documents.len());
        let count: usize = counts.sum();
        let seconds = scored.time.as_secs_f64();
        let rate = count as f64 / seconds.max(1e-9);
        let speed = if scored.resumed {
            format!("{count} documents, the rest of them in {seconds:.1} s")
        } else {
            format!("{count} documents in {seconds:.1} s, {rate:.1} documents/s")
        };
        let (backend, max_length) = (scored.backend.name(), scored.max_length);
        let control = self.scoring.control.map(|control| control.to_string());
        let heading = control
            .as_ref()
            .map(|control| format!("control: {control}\n\n"));
        let shown = heading.unwrap_or_default() + &table(&results);
        scored.finish(&self.scoring, &shown, &speed, || {
            let samples = evaluated.iter().map(|(task, documents, scores)| {
                let both = documents.iter().zip(scores);
                let samples = both.map(|(document, scores)| sample(document, scores));
                (task.to_string(), samples.collect::<Value>())
            });
            let results = results.iter().map(|(task, metrics)| {
                let numbers = metrics.iter().flat_map(|metric| {
                    let stderr = format!("{}_stderr", metric.name);
                    [
                        (metric.name.clone(), json!(metric.value)),
                        (stderr, json!(metric.stderr)),
                    ]
                });
                (task.to_string(), Value::Object(numbers.collect()))
            });
            json!({
                "model": self.scoring.model.model,
                "control": control,
                "backend": backend,
                "max_length": max_length,
                "limit": self.limit,
                "n_shot": 0,
                "seconds": seconds,
                "results": results.collect::<Map<_, _>>(),
                "samples": samples.collect::<Map<_, _>>(),
            })
        })
    }
}

/// The files of a task on the hub, or in its cache.
fn fetch(task: Task, source: Source) -> Result<Vec<PathBuf>, EvalError> {
    let files = model::Hub::from_env()
        .and_then(|hub| hub.dataset(source.dataset, source.config, source.split));
    files.map_err(|reason| EvalError::Hub {
        task,
        reason: reason.into(),
    })
}

/// A document's scores, in the JSON report.
fn sample(document: &Document, scores: &[Score]) -> Value {
    let log_likelihoods: Vec<f64> = scores.iter().map(|score| score.log_likelihood).collect();
    match &document.question {
        Question::Word => json!({
            "log_likelihood": log_likelihoods[0],
            "is_greedy": scores[0].is_greedy(),
        }),
        Question::Fact { length } => json!({
            "length": length,
            "log_likelihood": log_likelihoods[0],
            "is_greedy": scores[0].is_greedy(),
        }),
        Question::Facts { length } => json!({
            "length": length,
            "log_likelihoods": log_likelihoods,
            "are_greedy": scores.iter().map(Score::is_greedy).collect::<Vec<_>>(),
        }),
        Question::Repetition { length } => json!({
            "length": length,
            "log_likelihoods": log_likelihoods,
            "greedy_share": scores[0].greedy_share(),
            "floor": scores[1].greedy_share(),
        }),
        Question::Choice { gold, .. } | Question::Context { gold } => json!({
            "log_likelihoods": log_likelihoods,
            "gold": gold,
        }),
    }
}
