use super::super::{Evaluation, StepMetrics};
use super::*;

fn step(stage: &str, step: usize) -> Record {
    Record::Step(StepMetrics {
        stage: stage.to_owned(),
        step,
        tokens: 1024 * step as u64,
        loss: 1.5,
        lr: 1e-3,
        grad_norm: 0.25,
        grad_norms: [(model::Part::Mixer, 0.25)].into(),
        operations_per_second: 2e9,
        device_share: Some(0.25),
        data_wait: 0.5,
        tokens_per_second: 5000.0,
        skipped: false,
        seconds: 2.0,
        ..StepMetrics::default()
    })
}

fn evaluation(stage: Option<&str>) -> Record {
    Record::Evaluation(Evaluation {
        stage: stage.map(str::to_owned),
        step: None,
        tokens: 4096,
        teacher_perplexity: 29.5,
        student_perplexity: 33.25,
        tasks: Default::default(),
    })
}

/// An order that is not that of the letters.
const STAGES: [&str; 3] = ["short", "long", "again"];

/// The untrained student evaluated, four steps and an evaluation of the first stage, four steps of the
/// second.
fn a_run() -> Vec<Record> {
    let stage = |stage| (1..=4).map(move |n| step(stage, n));
    let mut records = vec![evaluation(None)];
    records.extend(stage("short"));
    records.push(evaluation(Some("short")));
    records.extend(stage("long"));
    records
}

fn resume(path: &Path, stage: &str, step: usize, evaluated: Option<&str>) -> MetricsLog {
    let position = Position {
        stage: stage.to_owned(),
        step,
    };
    // The mark of an unknown log, so that the lines decide what is kept.
    let mark = LogMark {
        bytes: 1,
        sha256: String::new(),
    };
    let stages = STAGES.map(str::to_owned);
    let resume = |mark| MetricsLog::resume(path, mark, &position, evaluated, &stages).unwrap();
    let (log, damage) = resume(Some(&mark));
    assert!(damage.unwrap().contains("metrics.jsonl"));
    // Nor of one whose checkpoint has no mark.
    let kept = log.mark();
    let (log, damage) = resume(None);
    assert_eq!((log.mark(), damage), (kept, None));
    log
}

fn write(path: &Path, records: &[Record]) {
    let mut log = MetricsLog::create(path).unwrap();
    records
        .iter()
        .for_each(|record| log.record(record).unwrap());
}

#[test]
fn a_line_has_the_documented_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    write(
        &path,
        &[
            step("stage2", 1),
            evaluation(Some("stage2")),
            evaluation(None),
        ],
    );
    let expected = r#"{"kind":"step","stage":"stage2","step":1,"tokens":1024,"loss":1.5,"lr":0.001,"grad_norm":0.25,"grad_norms":{"mixer":0.25},"tokens_per_second":5000.0,"operations_per_second":2000000000.0,"device_share":0.25,"data_wait":0.5,"memory_bytes":null,"skipped":false,"seconds":2.0}
{"kind":"evaluation","stage":"stage2","tokens":4096,"teacher_perplexity":29.5,"student_perplexity":33.25}
{"kind":"evaluation","stage":null,"tokens":4096,"teacher_perplexity":29.5,"student_perplexity":33.25}
"#;
    assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
}

#[test]
fn resuming_drops_what_comes_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    // (checkpoint, last stage evaluated, records kept): at a stage's end there is a checkpoint before it
    // is evaluated.
    for (stage, done, evaluated, kept) in [
        ("short", 0, None, 1),
        ("short", 2, None, 3),
        ("short", 4, None, 5),
        ("short", 4, Some("short"), 6),
        ("long", 0, Some("short"), 6),
        ("long", 3, Some("short"), 9),
        ("long", 4, Some("short"), 10),
        ("again", 0, Some("long"), 10),
    ] {
        write(&path, &a_run());
        let mut log = resume(&path, stage, done, evaluated);
        assert_eq!(read(&path).unwrap(), a_run()[..kept], "{stage} {done}");
        log.record(&step("again", 9)).unwrap();
        assert_eq!(read(&path).unwrap().len(), kept + 1);
        assert_eq!(read(&path).unwrap()[kept], step("again", 9));
    }
}

/// With its mark, a log is cut where it was when the checkpoint was written, whatever follows.
#[test]
fn a_mark_knows_its_log_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    log.record(&step("short", 1)).unwrap();
    let mark = log.mark();
    let known = std::fs::read(&path).unwrap();
    log.record(&step("short", 2)).unwrap();
    assert!(log.is_intact().unwrap());
    let position = Position {
        stage: "short".into(),
        step: 1,
    };
    let resume = || MetricsLog::resume(&path, Some(&mark), &position, None, &[]).unwrap();
    for behind in [&b"{\"kind\":\"step\",\xff"[..], b"\xc3", b""] {
        std::fs::write(&path, [&known, behind].concat()).unwrap();
        let (mut log, damage) = resume();
        assert_eq!(damage, None);
        assert_eq!(std::fs::read(&path).unwrap(), known);
        assert_eq!(log.mark(), mark);
        log.record(&step("short", 2)).unwrap();
        assert!(log.is_intact().unwrap());
        std::fs::write(&path, &known).unwrap();
        assert!(!log.is_intact().unwrap());
    }
    // A digit, the last byte, all of it.
    let mut digit = known.clone();
    let at = digit.iter().position(u8::is_ascii_digit).unwrap();
    digit[at] ^= 1;
    for damaged in [&digit, &known[..known.len() - 1], b""] {
        std::fs::write(&path, damaged).unwrap();
        assert!(resume().1.is_some());
    }
}

/// As if the disk had been full in the middle of a line.
#[test]
fn a_part_of_a_line_is_removed_before_it_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    log.record(&step("short", 1)).unwrap();
    let (bytes, file) = (log.bytes, log.file.as_mut().unwrap());
    file.write_all(b"{\"kind\":\"st").unwrap();
    cut(file, bytes).unwrap();
    log.record(&step("short", 2)).unwrap();
    assert!(log.is_intact().unwrap());
    assert_eq!(read(&path).unwrap(), [step("short", 1), step("short", 2)]);
}

#[test]
fn a_torn_last_line_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    write(&path, &[step("short", 1), step("short", 2)]);
    let whole = std::fs::read_to_string(&path).unwrap();
    for torn in 1..whole.len() / 2 {
        std::fs::write(&path, &whole[..whole.len() - torn]).unwrap();
        assert_eq!(read(&path).unwrap(), [step("short", 1)]);
    }
    // In the middle of a character.
    std::fs::write(&path, [whole.as_bytes(), b"\xc3"].concat()).unwrap();
    assert_eq!(read(&path).unwrap().len(), 2);
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let mut log = resume(&path, "short", 2, None);
    log.record(&step("short", 2)).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
}

#[test]
fn a_foreign_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    write(&path, &a_run());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"stage\":\"short\"", "\"stag\":1", 1)).unwrap();
    let message = read(&path).unwrap_err().to_string();
    assert!(message.contains("metrics.jsonl line 2"), "{message}");
    assert_eq!(read_what_can_be(&path).unwrap().len(), a_run().len() - 1);
}

#[test]
fn not_a_number_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let Record::Step(mut metrics) = step("short", 1) else {
        unreachable!()
    };
    metrics.loss = f64::INFINITY;
    metrics.grad_norm = f64::NAN;
    metrics.grad_norms.insert(model::Part::Mixer, f64::NAN);
    metrics.skipped = true;
    write(&path, &[Record::Step(metrics)]);
    match read(&path).unwrap().as_slice() {
        [Record::Step(read)] => {
            assert!(read.loss.is_nan() && read.grad_norm.is_nan() && read.skipped);
            assert!(read.grad_norms[&model::Part::Mixer].is_nan());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_log_is_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    assert!(read(&path).unwrap().is_empty());
    resume(&path, "short", 1, None);
    assert!(path.exists());
}
