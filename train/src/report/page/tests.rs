//! The contents of the page.

use super::*;

fn data() -> ReportData {
    let evaluation = Evaluation {
        stage: Some("last".to_owned()),
        step: None,
        tokens: 2048,
        teacher_perplexity: 20.0,
        student_perplexity: 25.0,
        tasks: Default::default(),
    };
    let step = StepMetrics {
        stage: "last".to_owned(),
        step: 1,
        tokens: 1024,
        loss: 3.5,
        lr: 1e-3,
        grad_norm: 1.0,
        tokens_per_second: 5000.0,
        skipped: false,
        seconds: 1.0,
        ..StepMetrics::default()
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
            stages: vec![StageSummary {
                stage: "last".to_owned(),
                kind: "predictions".to_owned(),
                tokens: 2048,
                steps: 2,
                seconds: 1.0,
                loss: 3.5,
                perplexity: 25.0,
            }],
            skipped_steps: 0,
            skipped_lines: 0,
            notes: vec![Note {
                stage: "last".to_owned(),
                step: 1,
                text: "a < b".to_owned(),
            }],
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
        "<h3>last: knowledge distillation</h3>",
        "in nats a token",
        "Layer 0, head 1",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "\u{fffd}&quot;quoted&quot;",
        "a\nb",
        "name = &quot;&lt;tiny&gt;&quot;",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(
        !html.contains("matrix orientation"),
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
    data.summary.stages.clear();
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
    // Where a folder stands, no file can be.
    let message = data().write(folder.path()).unwrap_err().to_string();
    let name = folder.path().display().to_string();
    assert!(message.contains(&name), "{message}");
}
