//! The page around the drawings.

use indicatif::{HumanBytes, HumanCount};

use super::{MatrixPair, ReportData, ReportError, Sample, chart, heatmap};
use crate::metrics::{Evaluation, Record, StepMetrics};
use crate::summary::{StageSummary, Summary, stage_name, time};

const STYLE: &str = include_str!("page.css");

/// What each stage's loss is, and how its axis is labelled.
const LOSSES: [(&str, &str); 3] = [
    (
        "Frobenius norm of transfer matrix minus attention matrix, mean over batch and heads, \
         summed over layers. Every layer reads the teacher's hidden state.",
        "matrix distance",
    ),
    (
        "L2 norm of student output minus teacher output, mean over tokens, summed over layers. \
         Every layer reads the teacher's hidden state.",
        "hidden-state distance",
    ),
    (
        "Cross-entropy of the student's next-token distribution against the teacher's, in nats a \
         token. It cannot fall below the entropy of the teacher.",
        "cross-entropy (nats)",
    ),
];

pub(super) fn render(data: &ReportData) -> Result<String, ReportError> {
    let mut steps: [Vec<&StepMetrics>; 3] = Default::default();
    let mut evaluations: Vec<&Evaluation> = Vec::new();
    for record in &data.records {
        match record {
            Record::Step(step) => {
                if let Some(stage) = steps.get_mut(usize::from(step.stage).wrapping_sub(1)) {
                    stage.push(step);
                }
            }
            Record::Evaluation(evaluation) => {
                // Of a stage measured twice, as after an edit of the configuration, the last counts.
                evaluations.retain(|other| other.stage != evaluation.stage);
                evaluations.push(evaluation);
            }
        }
    }
    let name = escape(&data.name);
    let summary = &data.summary;
    let sections = [
        header(&name, summary),
        perplexity_section(&evaluations)?,
        loss_section(&steps)?,
        table_section(summary),
        matrix_section(&data.matrices)?,
        sample_section(&data.samples),
        config_section(&data.config),
    ];
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}: {:.3} times the teacher's perplexity</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{}</body>\n</html>\n",
        summary.ratio,
        sections.concat()
    ))
}

fn header(name: &str, summary: &Summary) -> String {
    let memory = summary
        .peak_memory_bytes
        .map(|bytes| fact("peak memory", &HumanBytes(bytes).to_string()))
        .unwrap_or_default();
    format!(
        "<h1>{name}: {ratio:.3} times the teacher's perplexity</h1>\n\
         <p class=\"lead\">A Phi Transformer distilled into Phi-Mamba by MOHAWK: first the mixing matrices, \
         then the hidden states, then the predictions.</p>\n<dl class=\"facts\">\n{}{}{}{}{}{}{memory}</dl>\n",
        fact(
            "perplexity, student",
            &format!(
                "<span class=\"student\">{:.2}</span>",
                summary.student_perplexity
            )
        ),
        fact(
            "perplexity, teacher",
            &format!(
                "<span class=\"teacher\">{:.2}</span>",
                summary.teacher_perplexity
            )
        ),
        fact("training tokens", &HumanCount(summary.tokens).to_string()),
        fact(
            "tokens per second",
            &HumanCount(summary.tokens_per_second as u64).to_string()
        ),
        fact("wall-clock time", &time(summary.seconds).to_string()),
        fact("backend", &escape(&summary.backend)),
        ratio = summary.ratio,
    )
}

fn fact(name: &str, html: &str) -> String {
    format!("<div><dt>{name}</dt><dd>{html}</dd></div>\n")
}

fn perplexity_section(evaluations: &[&Evaluation]) -> Result<String, ReportError> {
    Ok(match chart::perplexities(evaluations)? {
        None => String::new(),
        Some(svg) => format!(
            "<h2>Perplexity after each stage</h2>\n<figure>\n<div class=\"wide\">{svg}</div><figcaption>\
             The <b class=\"student\">student</b> on held-out text, against the tokens it has been trained on; \
             in brackets its multiple of the <b class=\"teacher\">teacher</b>'s, which is where distillation \
             leads at best. Stages 1 and 2 never see a prediction, so what perplexity they gain is a by-product.\
             </figcaption>\n</figure>\n"
        ),
    })
}

fn loss_section(steps: &[Vec<&StepMetrics>; 3]) -> Result<String, ReportError> {
    let mut panels = String::new();
    for (stage, (steps, (meaning, axis))) in (1..).zip(steps.iter().zip(LOSSES)) {
        let Some(svg) = chart::losses(steps, axis)? else {
            continue;
        };
        let skipped = match steps.iter().filter(|step| step.skipped).count() {
            0 => String::new(),
            1 => " One step was not finite and skipped.".to_owned(),
            count => format!(" {count} steps were not finite and skipped."),
        };
        panels.push_str(&format!(
            "<figure>\n<h3>Stage {stage}: {}</h3>\n{svg}<figcaption>{meaning}{skipped}</figcaption>\n</figure>\n",
            stage_name(stage)
        ));
    }
    Ok(format!(
        "<h2>Training losses</h2>\n<p class=\"note\">Pale: every step. Bold: the mean over a thirtieth of the \
         stage. Each stage has a loss of its own, so heights compare within a panel only.</p>\n\
         <div class=\"panels\">\n{panels}</div>\n"
    ))
}

fn table_section(summary: &Summary) -> String {
    let row = |stage: &StageSummary| {
        format!(
            "<tr><td>{} · {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.2}</td>\
             <td>{:.3}</td></tr>\n",
            stage.stage,
            stage_name(stage.stage),
            HumanCount(stage.steps as u64),
            HumanCount(stage.tokens),
            time(stage.seconds),
            HumanCount(stage.tokens_per_second() as u64),
            stage.loss,
            stage.perplexity,
            stage.perplexity / summary.teacher_perplexity,
        )
    };
    format!(
        "<h2>Stages in numbers</h2>\n<div class=\"wide\"><table>\n<tr><th>stage</th><th>steps</th><th>tokens</th>\
         <th>time</th><th>tokens/s</th><th>loss at the end</th><th>perplexity</th><th>over teacher</th></tr>\n\
         {}</table></div>\n",
        summary.stages.iter().map(row).collect::<String>()
    )
}

fn matrix_section(pairs: &[MatrixPair]) -> Result<String, ReportError> {
    if pairs.is_empty() {
        return Ok(String::new());
    }
    let mut marks = String::new();
    for value in heatmap::MARKS {
        let left = 100.0 * heatmap::place(value);
        marks.push_str(&format!("<span style=\"left:{left:.1}%\">{value}</span>"));
    }
    let mut figures = String::new();
    for pair in pairs {
        figures.push_str(&matrix_figure(pair)?);
    }
    Ok(format!(
        "<h2>Mixing matrices</h2>\n<p>How much each position (row) takes from each earlier one (column), for one \
         held-out sequence: the transfer matrix of the <b class=\"student\">student</b>'s scan beside the attention \
         matrix of the <b class=\"teacher\">teacher</b>'s head that it replaced. A bright left column is attention \
         to the first token, a bright diagonal to the token itself. All heads share one colour scale, \
         logarithmic from a thousandth upwards; values beyond 1 have its last colour.</p>\n\
         <div class=\"legend\"><img src=\"{}\" alt=\"colour scale from -1 to 1\">{marks}</div>\n\
         <div class=\"heads\">\n{figures}</div>\n",
        heatmap::legend()?
    ))
}

fn matrix_figure(pair: &MatrixPair) -> Result<String, ReportError> {
    let [student, teacher] = heatmap::images(pair)?;
    let last = pair.size.min(heatmap::SHOWN).saturating_sub(1);
    let half = |who: &str, what: &str, image: &str| {
        format!(
            "<div><h4 class=\"{who}\">{what}</h4><img src=\"{image}\" alt=\"{what} of layer {}, head {}\">\
             <div class=\"axis\"><span>0</span><span>source position →</span><span>{last}</span></div></div>\n",
            pair.layer, pair.head
        )
    };
    let cropped = match pair.size > heatmap::SHOWN {
        true => format!(
            " Shown: the first {} of {} positions.",
            heatmap::SHOWN,
            pair.size
        ),
        false => String::new(),
    };
    Ok(format!(
        "<figure>\n<h3>Layer {}, head {}</h3>\n<div class=\"pair\">\n{}{}</div>\n<figcaption>\
         ‖T − A‖ is {:.1}% of ‖A‖ (Frobenius).{cropped}</figcaption>\n</figure>\n",
        pair.layer,
        pair.head,
        half("student", "student: transfer matrix T", &student),
        half("teacher", "teacher: attention A", &teacher),
        100.0 * heatmap::relative_distance(pair),
    ))
}

fn sample_section(samples: &[Sample]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let shown = |sample: &Sample| {
        format!(
            "<div class=\"sample\"><p class=\"prompt\">{}</p>\
             <p><small class=\"student\">student</small>{}</p><p><small class=\"teacher\">teacher</small>{}</p></div>\n",
            escape(&sample.prompt),
            escape(&sample.student),
            escape(&sample.teacher)
        )
    };
    format!(
        "<h2>What they write</h2>\n<p class=\"note\">The same prompt, continued by both.</p>\n{}",
        samples.iter().map(shown).collect::<String>()
    )
}

fn config_section(config: &str) -> String {
    format!(
        "<h2>Configuration</h2>\n<details><summary>Every key of this run, as TOML</summary>\n<pre>{}</pre></details>\n",
        escape(config)
    )
}

/// Text as HTML shows it unchanged. A model may write anything.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            // What HTML cannot hold.
            c if c.is_control() && !c.is_whitespace() => html.push('\u{fffd}'),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> ReportData {
        let evaluation = Evaluation {
            stage: 3,
            tokens: 2048,
            teacher_perplexity: 20.0,
            student_perplexity: 25.0,
        };
        let step = StepMetrics {
            stage: 3,
            step: 1,
            tokens: 1024,
            loss: 3.5,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 5000.0,
            skipped: false,
            seconds: 1.0,
        };
        ReportData {
            name: "a & b".to_owned(),
            summary: Summary {
                teacher_perplexity: 20.0,
                student_perplexity: 25.0,
                ratio: 1.25,
                tokens: 2048,
                seconds: 1.0,
                tokens_per_second: 2048.0,
                stages: Vec::new(),
                skipped_steps: 0,
                backend: "flex".to_owned(),
                peak_memory_bytes: None,
            },
            records: vec![Record::Step(step), Record::Evaluation(evaluation)],
            matrices: vec![MatrixPair {
                layer: 0,
                head: 1,
                size: 2,
                student: vec![1.0, 0.0, 0.5, 0.5],
                teacher: vec![1.0, 0.0, 0.25, 0.75],
            }],
            samples: vec![Sample {
                prompt: "<script>alert(1)</script>".to_owned(),
                teacher: "\u{0}\"quoted\"".to_owned(),
                student: "a\nb".to_owned(),
            }],
            config: "name = \"<tiny>\"\n".to_owned(),
        }
    }

    #[test]
    fn the_page_holds_everything_and_loads_nothing() {
        let html = data().to_html().unwrap();
        for part in [
            "<title>a &amp; b: 1.250 times",
            "Perplexity after each stage",
            "Stage 3: knowledge distillation",
            "Layer 0, head 1",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
            "\u{fffd}&quot;quoted&quot;",
            "a\nb",
            "name = &quot;&lt;tiny&gt;&quot;",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(
            !html.contains("Stage 1:"),
            "no panel for a stage that did not run"
        );
        assert!(!html.contains("<script"));
        // The one address is SVG's namespace, which is a name and is never fetched.
        let addresses = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in ["http", "url(", "@import", "<link", "src=\"/"] {
            assert!(!addresses.contains(reference), "{reference}");
        }
    }

    #[test]
    fn a_run_that_recorded_nothing_still_has_a_page() {
        let mut data = data();
        data.records.clear();
        data.matrices.clear();
        data.samples.clear();
        data.summary.ratio = f64::NAN;
        assert!(data.to_html().unwrap().contains("Configuration"));
    }

    #[test]
    fn it_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        data().write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            data().to_html().unwrap()
        );
        let message = data()
            .write(&folder.path().join("no/report.html"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("no/report.html"), "{message}");
    }
}
