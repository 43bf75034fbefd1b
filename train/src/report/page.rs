//! The page around the drawings.

use std::collections::BTreeSet;

use indicatif::{HumanBytes, HumanCount};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{MatrixPair, ReportData, ReportError, Sample, chart, heatmap};
use crate::metrics::{Evaluation, Note, Record, StepMetrics};
use crate::stages::Kind;
use crate::summary::{StageSummary, Summary, time};

pub(super) const STYLE: &str = include_str!("page.css");

pub(super) fn render(data: &ReportData) -> Result<String, ReportError> {
    let summary = &data.summary;
    let title = format!(
        "{}: {:.3} times the teacher's perplexity",
        displayable(&data.name),
        summary.ratio
    );
    let body = html! {
        (header(&title, summary))
        (notes_section(&summary.notes))
        (perplexity_section(&data.records)?)
        (loss_section(&summary.stages, &data.records)?)
        (table_section(summary))
        (matrix_section(&data.matrices)?)
        (sample_section(&data.samples))
        (config_section(&data.config))
    };
    Ok(document(&title, &body))
}

/// A whole page.
pub(crate) fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn header(title: &str, summary: &Summary) -> Markup {
    let perplexity = |perplexity: f64| format!("{perplexity:.2}");
    html! {
        h1 { (title) }
        p.lead {
            "A Transformer distilled into a student with Mamba-2 mixers by MOHAWK, in the stages below."
        }
        dl.facts {
            (fact("perplexity, student", html! { span.student { (perplexity(summary.student_perplexity)) } }))
            (fact("perplexity, teacher", html! { span.teacher { (perplexity(summary.teacher_perplexity)) } }))
            (fact("training tokens", html! { (HumanCount(summary.tokens)) }))
            (fact("tokens per second", html! { (HumanCount(summary.tokens_per_second as u64)) }))
            (fact("wall-clock time", html! { (time(summary.seconds)) }))
            (fact("backend", html! { (summary.backend) }))
            @if let Some(bytes) = summary.peak_memory_bytes {
                (fact("peak memory", html! { (HumanBytes(bytes)) }))
            }
        }
    }
}

fn notes_section(notes: &[Note]) -> Markup {
    html! {
        @if !notes.is_empty() {
            h2 { "Notes" }
            ul {
                @for Note { stage, step, text } in notes {
                    li { (stage) ", step " (step) ": " (displayable(text)) }
                }
            }
        }
    }
}

fn fact(name: &str, value: Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn perplexity_section(records: &[Record]) -> Result<Markup, ReportError> {
    let mut evaluations: Vec<&Evaluation> = Vec::new();
    for record in records {
        if let Record::Evaluation(evaluation) = record {
            // If the same was measured twice, for example after an edit of the configuration, the last one counts.
            let is_same = |other: &Evaluation| {
                (&other.stage, other.step) == (&evaluation.stage, evaluation.step)
            };
            evaluations.retain(|other| !is_same(other));
            evaluations.push(evaluation);
        }
    }
    let tasks = task_table(&evaluations);
    let Some(svg) = chart::perplexities(&evaluations)? else {
        return Ok(tasks);
    };
    Ok(html! {
        h2 { "Perplexity after each stage" }
        figure {
            div.wide { (PreEscaped(svg)) }
            figcaption {
                "The " b.student { "student" } " on held-out text, against the tokens it has been trained on; in \
                 brackets its multiple of the " b.teacher { "teacher" } "'s, which is the best that distillation \
                 can reach. Only a stage whose loss compares predictions trains for perplexity; what other stages \
                 gain of it is a by-product."
            }
        }
        (tasks)
    })
}

/// The student's scores in tasks, a row for each measurement that has some.
fn task_table(evaluations: &[&Evaluation]) -> Markup {
    let scored = evaluations.iter().filter(|e| !e.tasks.is_empty());
    let scored: Vec<_> = scored.collect();
    let names: BTreeSet<&String> = scored.iter().flat_map(|e| e.tasks.keys()).collect();
    if scored.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Tasks" }
        div.wide {
            table {
                thead {
                    tr {
                        th { "student" }
                        th { "tokens" }
                        @for name in &names { th { (name) } }
                    }
                }
                tbody {
                    @for evaluation in scored {
                        tr {
                            td {
                                (evaluation.stage.as_deref().unwrap_or("untrained"))
                                @if let Some(step) = evaluation.step { " step " (step) }
                            }
                            td { (HumanCount(evaluation.tokens)) }
                            @for name in &names {
                                td {
                                    @if let Some(score) = evaluation.tasks.get(*name) {
                                        (format!("{score:.4}"))
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn loss_section(stages: &[StageSummary], records: &[Record]) -> Result<Markup, ReportError> {
    let mut panels = vec![];
    for stage in stages {
        let steps = records.iter().filter_map(|record| match record {
            Record::Step(step) if step.stage == stage.stage => Some(step),
            _ => None,
        });
        let steps: Vec<&StepMetrics> = steps.collect();
        let words = Kind::named(&stage.kind).map(|kind| kind.description());
        let Some(svg) = chart::losses(&steps, words.map_or("loss", |words| words.axis))? else {
            continue;
        };
        let skipped = match steps.iter().filter(|step| step.skipped).count() {
            0 => String::new(),
            1 => " One step was skipped.".to_owned(),
            count => format!(" {count} steps were skipped."),
        };
        panels.push(html! {
            figure {
                h3 { (stage.title()) }
                (PreEscaped(svg))
                figcaption { (words.map_or("", |words| words.loss)) (skipped) }
            }
        });
    }
    Ok(html! {
        h2 { "Training losses" }
        p.note {
            "Pale: every step. Bold: the mean over a thirtieth of the stage. Stages of different kinds have \
             different losses, so compare heights within a panel only."
        }
        div.panels { @for panel in panels { (panel) } }
    })
}

fn table_section(summary: &Summary) -> Markup {
    let header = [
        "stage",
        "steps",
        "tokens",
        "time",
        "tokens/s",
        "loss at the end",
        "perplexity",
        "over teacher",
    ];
    html! {
        h2 { "Stages in numbers" }
        div.wide {
            table {
                tr { @for name in header { th { (name) } } }
                @for stage in &summary.stages {
                    tr {
                        td { (stage.title()) }
                        td { (HumanCount(stage.steps as u64)) }
                        td { (HumanCount(stage.tokens)) }
                        td { (time(stage.seconds)) }
                        td { (HumanCount(stage.tokens_per_second() as u64)) }
                        td { (format!("{:.4}", stage.loss)) }
                        td { (format!("{:.2}", stage.perplexity)) }
                        td { (format!("{:.3}", stage.perplexity / summary.teacher_perplexity)) }
                    }
                }
            }
        }
    }
}

fn matrix_section(pairs: &[MatrixPair]) -> Result<Markup, ReportError> {
    if pairs.is_empty() {
        return Ok(html! {});
    }
    let figures = pairs
        .iter()
        .map(matrix_figure)
        .collect::<Result<Vec<_>, _>>()?;
    let left = |mark: f32| format!("left:{:.1}%", 100.0 * heatmap::place(mark));
    Ok(html! {
        h2 { "Mixing matrices" }
        p {
            "How much each position (row) takes from each earlier one (column), for one held-out sequence: the \
             transfer matrix of the " b.student { "student" } "'s scan beside the attention matrix of the "
            b.teacher { "teacher" } "'s head that it replaced. A bright left column is attention to the first \
             token, a bright diagonal to the token itself. All heads share one colour scale, logarithmic from a \
             thousandth upwards; values beyond 1 have its last colour."
        }
        div.legend {
            img src=(heatmap::legend()?) alt="colour scale from -1 to 1";
            @for mark in heatmap::MARKS { span style=(left(mark)) { (mark) } }
        }
        div.heads { @for figure in figures { (figure) } }
    })
}

fn matrix_figure(pair: &MatrixPair) -> Result<Markup, ReportError> {
    let [student, teacher] = heatmap::images(pair)?;
    let last = pair.size.min(heatmap::SHOWN).saturating_sub(1);
    let half = |who: &str, what: &str, image: &str| {
        html! {
            div {
                h4 class=(who) { (what) }
                img src=(image) alt=(format!("{what} of layer {}, head {}", pair.layer, pair.head));
                div.axis { span { "0" } span { "source position →" } span { (last) } }
            }
        }
    };
    let distance = 100.0 * heatmap::relative_distance(pair);
    Ok(html! {
        figure {
            h3 { "Layer " (pair.layer) ", head " (pair.head) }
            div.pair {
                (half("student", "student: transfer matrix T", &student))
                (half("teacher", "teacher: attention A", &teacher))
            }
            figcaption {
                (format!("‖T − A‖ is {distance:.1}% of ‖A‖ (Frobenius)."))
                @if pair.size > heatmap::SHOWN {
                    " Shown: the first " (heatmap::SHOWN) " of " (pair.size) " positions."
                }
            }
        }
    })
}

fn sample_section(samples: &[Sample]) -> Markup {
    html! {
        @if !samples.is_empty() {
            h2 { "What they write" }
            p.note { "The same prompt, continued by both." }
        }
        @for sample in samples {
            div.sample {
                p.prompt { (displayable(&sample.prompt)) }
                p { small.student { "student" } (displayable(&sample.student)) }
                p { small.teacher { "teacher" } (displayable(&sample.teacher)) }
            }
        }
    }
}

fn config_section(config: &str) -> Markup {
    html! {
        h2 { "Configuration" }
        details {
            summary { "Every key of this run, as TOML" }
            pre { (displayable(config)) }
        }
    }
}

/// Replaces the control characters that HTML cannot contain: a model may write any character.
pub(super) fn displayable(text: &str) -> String {
    let replaced = |c: char| {
        if c.is_control() && !c.is_whitespace() {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(replaced).collect()
}

#[cfg(test)]
mod tests;
