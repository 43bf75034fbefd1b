//! Several runs on one page: their losses over each other, their results in one table, and what differs in their
//! configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use comfy_table::presets;
use indicatif::HumanCount;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use toml::{Table, Value};

use super::page::{STYLE, displayable};
use super::{ReportError, chart};
use crate::config::{Config, Source};
use crate::error::TrainError;
use crate::metrics::{Evaluation, Record, StepMetrics, read_what_can_be};
use crate::run::{CONFIG, METRICS};
use crate::table::table;

/// The loss in the table is the mean over this many steps at a stage's end.
const LAST: usize = 20;

/// What the columns of the table are.
const HEADER: [&str; 7] = [
    "run",
    "stage",
    "steps",
    "tokens/s",
    "loss at the end",
    "perplexity",
    "over teacher",
];

/// Runs to lay over each other. They need not be finished.
#[derive(Debug)]
pub struct Comparison(Vec<OneRun>);

/// A run, as read from its folder.
#[derive(Debug)]
struct OneRun {
    /// The name of its folder, or the whole path if another run has the same name.
    name: String,
    config: Config,
    steps: Vec<StepMetrics>,
    evaluations: Vec<Evaluation>,
}

impl Comparison {
    /// The runs in `folders`.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] for a folder without one; [`TrainError::Config`] and [`TrainError::Metrics`] where its
    /// files cannot be read.
    pub fn read(folders: &[PathBuf]) -> Result<Self, TrainError> {
        let short = |folder: &Path| {
            let name = folder.file_name().unwrap_or(folder.as_os_str());
            name.to_string_lossy().into_owned()
        };
        let read = |folder: &PathBuf| {
            let file = folder.join(CONFIG);
            if !file.exists() {
                return Err(TrainError::NoRun(folder.clone()));
            }
            let same = folders.iter().filter(|other| short(other) == short(folder));
            let mut run = OneRun {
                name: if same.count() == 1 {
                    short(folder)
                } else {
                    folder.display().to_string()
                },
                config: Config::load(Source::File(&file), &[])?,
                steps: vec![],
                evaluations: vec![],
            };
            for record in read_what_can_be(&folder.join(METRICS))? {
                match record {
                    Record::Step(step) => run.steps.push(step),
                    Record::Evaluation(evaluation) => run.evaluations.push(evaluation),
                    Record::Note(_) => {}
                }
            }
            Ok(run)
        };
        folders.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Writes the page to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let html = self.to_html()?;
        model::atomic_file::write(path, html.as_bytes()).map_err(|source| ReportError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// The page.
    ///
    /// # Errors
    /// [`ReportError`], but for `Write`.
    pub fn to_html(&self) -> Result<String, ReportError> {
        let names: Vec<_> = self.0.iter().map(|run| displayable(&run.name)).collect();
        let title = format!("Runs compared: {}", names.join(", "));
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Runs compared" }
                    p.lead {
                        @for (place, name) in names.iter().enumerate() {
                            b style=(format!("color:{}", chart::colour_of(place))) { "\u{25cf} " (name) } " "
                        }
                    }
                    (self.curves()?)
                    h2 { "In numbers" }
                    (rows(&HEADER.map(str::to_owned), &self.rows()))
                    (self.differences())
                }
            }
        };
        Ok(page.into_string())
    }

    /// The stages of all runs, each once, in the order of the runs.
    fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = vec![];
        for stage in self.0.iter().flat_map(|run| &run.config.stages) {
            if !stages.contains(&stage.name.as_str()) {
                stages.push(&stage.name);
            }
        }
        stages
    }

    fn curves(&self) -> Result<Markup, ReportError> {
        let mut panels = vec![];
        for stage in self.stages() {
            let curves: Vec<_> = (self.0.iter())
                .map(|run| {
                    let steps = run.steps.iter().filter(|step| step.stage == stage);
                    steps.map(|step| (step.tokens, step.loss)).collect()
                })
                .collect();
            let kinds = self.0.iter().find_map(|run| run.config.stage(stage));
            let axis = kinds.map_or("loss", |stage| stage.kind.description().axis);
            if let Some(svg) = chart::overlaid(&curves, axis, false)? {
                panels.push((stage, svg));
            }
        }
        let ratios: Vec<_> = (self.0.iter())
            .map(|run| {
                let evaluations = run.evaluations.iter();
                evaluations
                    .map(|e| (e.tokens, e.student_perplexity / e.teacher_perplexity))
                    .collect()
            })
            .collect();
        let axis = "perplexity over the teacher's";
        if let Some(svg) = chart::overlaid(&ratios, axis, true)? {
            panels.push(("after each stage", svg));
        }
        let evaluations = self.0.iter().flat_map(|run| &run.evaluations);
        let tasks: BTreeSet<&str> = evaluations
            .flat_map(|evaluation| evaluation.tasks.keys().map(String::as_str))
            .collect();
        for task in tasks {
            let of_run = |run: &OneRun| {
                let scores = run.evaluations.iter();
                let scores = scores.filter_map(|e| Some((e.tokens, *e.tasks.get(task)?)));
                scores.collect()
            };
            let scores: Vec<_> = self.0.iter().map(of_run).collect();
            if let Some(svg) = chart::overlaid(&scores, "score", true)? {
                panels.push((task, svg));
            }
        }
        Ok(html! {
            h2 { "Curves" }
            p.note { "Losses are means over a thirtieth of a stage, against the training tokens of each run." }
            div.panels {
                @for (title, svg) in panels {
                    figure { h3 { (title) } (PreEscaped(svg)) }
                }
            }
        })
    }

    /// The rows of the table, without its header.
    fn rows(&self) -> Vec<[String; 7]> {
        let mut all = vec![];
        for run in &self.0 {
            for stage in &run.config.stages {
                let steps = run.steps.iter().filter(|step| step.stage == stage.name);
                let steps: Vec<_> = steps.collect();
                let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
                    continue;
                };
                let finite = steps.iter().filter(|step| step.loss.is_finite());
                let losses: Vec<_> = finite.map(|step| step.loss).rev().take(LAST).collect();
                let loss = losses.iter().sum::<f64>() / losses.len() as f64;
                let seconds = last.seconds - first.seconds;
                let speed = if seconds > 0.0 {
                    last.tokens.saturating_sub(first.tokens) as f64 / seconds
                } else {
                    last.tokens_per_second
                };
                let mut measured = run.evaluations.iter();
                let measured = measured.rfind(|e| e.stage.as_ref() == Some(&stage.name));
                let of = |f: &dyn Fn(&Evaluation) -> String| measured.map_or("-".to_owned(), f);
                all.push([
                    run.name.clone(),
                    stage.name.clone(),
                    HumanCount(last.step as u64).to_string(),
                    HumanCount(speed as u64).to_string(),
                    format!("{loss:.4}"),
                    of(&|e| format!("{:.2}", e.student_perplexity)),
                    of(&|e| format!("{:.4}", e.student_perplexity / e.teacher_perplexity)),
                ]);
            }
        }
        all
    }

    /// The keys whose values are not the same in all configurations.
    fn differences(&self) -> Markup {
        let settings = |run: &OneRun| {
            let mut all = BTreeMap::new();
            flatten("", &run.config.to_table().unwrap_or_default(), &mut all);
            all
        };
        let settings: Vec<_> = self.0.iter().map(settings).collect();
        let keys: BTreeSet<_> = settings.iter().flat_map(BTreeMap::keys).collect();
        let mut header = vec!["key".to_owned()];
        header.extend(self.0.iter().map(|run| run.name.clone()));
        let mut differing = vec![];
        for key in keys {
            let of_run = |all: &BTreeMap<String, String>| all.get(key).cloned();
            let values: Vec<_> = settings.iter().map(of_run).collect();
            if values.iter().any(|value| *value != values[0]) {
                let mut row = vec![key.clone()];
                row.extend(
                    values
                        .into_iter()
                        .map(|value| value.unwrap_or("-".to_owned())),
                );
                differing.push(row);
            }
        }
        html! {
            h2 { "What differs in their configurations" }
            @if differing.is_empty() {
                p { "Nothing." }
            } @else {
                (rows(&header, &differing))
            }
        }
    }
}

/// A table in HTML.
fn rows<R: AsRef<[String]>>(header: &[String], rows: &[R]) -> Markup {
    html! {
        div.wide {
            table {
                tr { @for name in header { th { (displayable(name)) } } }
                @for row in rows {
                    tr { @for cell in row.as_ref() { td { (displayable(cell)) } } }
                }
            }
        }
    }
}

/// The values of `table` by their dotted keys; stages by their names.
fn flatten(prefix: &str, table: &Table, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let full = format!("{prefix}{key}");
        match value {
            Value::Table(table) => flatten(&format!("{full}."), table, into),
            Value::Array(stages) if full == "stages" => {
                for stage in stages.iter().filter_map(Value::as_table) {
                    let name = stage.get("name").and_then(Value::as_str);
                    flatten(&format!("{}.", name.unwrap_or_default()), stage, into);
                }
            }
            value => {
                into.insert(full, value.to_string());
            }
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&table(presets::NOTHING, HEADER, self.rows()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricsLog;

    /// A run's folder with four steps of the last stage, whose losses begin at `loss`.
    fn run(folder: &Path, set: &str, loss: f64) {
        std::fs::create_dir_all(folder).unwrap();
        let mut config = Config::load(Source::Preset("tiny"), &[set.to_owned()]).unwrap();
        config.choose_stages(&["stage3".to_owned()]).unwrap();
        config.write(&folder.join(CONFIG)).unwrap();
        let mut log = MetricsLog::create(&folder.join(METRICS)).unwrap();
        for step in 1..=4 {
            let step = StepMetrics {
                stage: "stage3".to_owned(),
                step,
                tokens: 1024 * step as u64,
                loss: loss / step as f64,
                seconds: 2.0 * step as f64,
                ..StepMetrics::default()
            };
            log.record(&Record::Step(step)).unwrap();
        }
        let evaluation = Evaluation {
            stage: Some("stage3".to_owned()),
            step: None,
            tokens: 4096,
            teacher_perplexity: 20.0,
            student_perplexity: 25.0,
            tasks: Default::default(),
        };
        log.record(&Record::Evaluation(evaluation)).unwrap();
    }

    #[test]
    fn runs_are_laid_over_each_other() {
        let parent = tempfile::tempdir().unwrap();
        let folders = ["one", "other"].map(|name| parent.path().join(name));
        run(&folders[0], "stage3.lr=1e-3", 12.0);
        run(&folders[1], "stage3.lr=2e-3", 24.0);
        let comparison = Comparison::read(&folders).unwrap();
        let html = comparison.to_html().unwrap();
        for place in 0..2 {
            let stroke = format!("stroke=\"{}\"", chart::colour_of(place));
            assert!(html.matches(&stroke).count() >= 2, "{stroke}");
        }
        assert_eq!(html.matches("<svg").count(), 2);
        for part in [
            "stage3.lr.mixer",
            "0.001",
            "0.002",
            // The mean of 12, 6, 4, 3.
            "6.2500",
            "12.5000",
            "1.2500",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("optimizer.beta1"));

        let text = comparison.to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        // 3072 tokens in 6 seconds.
        assert!(text.contains("512") && text.contains("1.2500"), "{text}");

        let path = parent.path().join("compare.html");
        comparison.write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), html);
        let none = Comparison::read(&[parent.path().join("none")]);
        let Err(none @ TrainError::NoRun(_)) = none else {
            panic!("no run in the folder");
        };
        // It is no option of this command.
        assert!(!none.to_string().contains("--resume"), "{none}");
    }
}
