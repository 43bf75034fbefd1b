//! Rows and verdicts of outcomes that are known.

use super::measure::{Kind, Measure, Reading};
use super::row::Group;
use super::verdict::{Standing, Verdict, summary, verdict};
use super::*;
use crate::eval::{Question, Task};

/// The student of these tests.
const STUDENT: usize = 3;

/// A measure of so many documents, each a question with so many choices; of a probe, of none.
fn measure(kind: Kind, documents: usize, choices: usize) -> Measure {
    let reading = || Reading::Question {
        question: match kind {
            Kind::Task(_) => Question::Context { gold: 0 },
            _ => Question::Facts { length: 512 },
        },
        requests: (0..choices)
            .map(|id| crate::eval::ScoreRequest::new([1, id as u32], 1))
            .collect(),
        by_length: false,
    };
    Measure {
        name: "measure".into(),
        kind,
        documents: (0..documents).map(|_| reading()).collect(),
    }
}

/// The teacher, its controls, and a student with its controls, each with the items of each document.
fn audited(measures: Vec<Measure>, items: &[&[Vec<Vec<f64>>]]) -> Audit {
    let mut audit = Audit::new(Plan {
        measures,
        left_out: vec![],
        options: PlanOptions {
            text: vec![],
            data: None,
            tasks: vec![],
            limit: None,
            lengths: vec![],
            seed: 1,
        },
        max_length: 2048,
    });
    let [window, none] = OF_TEACHER.map(Some);
    let models = [
        ("teacher", None, None),
        ("teacher", window, Some(TEACHER)),
        ("teacher", none, Some(TEACHER)),
        ("student", None, None),
        ("student", Some(Control::NoSsm), Some(STUDENT)),
        ("student", Some(Control::Reset(64)), Some(STUDENT)),
    ];
    let columns = models.map(|(model, control, of)| Column {
        model: model.into(),
        control,
        of,
    });
    audit.columns = columns.into_iter().take(items[0].len()).collect();
    let of = |model: usize| {
        let measures = items.iter().map(|models| {
            let documents = models[model].iter().cloned();
            let outcomes = documents.map(|items| Outcome {
                items,
                floor: vec![],
            });
            Ok(outcomes.collect())
        });
        measures.collect()
    };
    audit.outcomes = (0..audit.columns.len()).map(of).collect();
    audit
}

const NEEDLE: Kind = Kind::Recall {
    task: Task::Needle,
    length: 512,
};

/// One item a document, from a line of ones and zeros.
fn line(text: &str) -> Vec<Vec<f64>> {
    let digits = text.chars().filter_map(|c| c.to_digit(10));
    digits.map(|digit| vec![f64::from(digit)]).collect()
}

fn said(audit: &Audit) -> (Verdict, String) {
    let rows = audit.rows();
    (
        verdict(audit, &rows[0], STUDENT),
        summary(audit, &rows, STUDENT),
    )
}

fn of_lines(lines: &[&str]) -> (Verdict, String) {
    let models: Vec<_> = lines.iter().map(|text| line(text)).collect();
    let n = models[0].len();
    said(&audited(vec![measure(NEEDLE, n, 0)], &[&models]))
}

/// The teacher gets ten of twelve needles right; only these ten count.
#[test]
fn a_student_that_finds_what_a_window_does_not() {
    let (verdict, summary) = of_lines(&[
        "1111 1111 1100",
        "1000 0000 0011",
        "0000 0000 0000",
        "1111 1111 1011",
        "1000 0000 0000",
        "1000 0000 0000",
    ]);
    assert_eq!(verdict.standing, Standing::BeyondWindow);
    let expected = "beyond the window control; level with the teacher; needs its SSM and what its state carries \
                    from 64 tokens to the next 64";
    assert_eq!(verdict.words, expected);
    assert_eq!(summary, "beyond the window control in 1 of 1 rows: measure");
}

#[test]
fn a_student_that_finds_what_a_window_does() {
    let lines = [
        "1111 1111 1111",
        "1110 0000 0000",
        "0000 0000 0000",
        "1110 0000 0000",
        "1110 0000 0000",
        "0000 0000 0000",
    ];
    let (verdict, summary) = of_lines(&lines);
    // A window of 3 in 12: its error is 0.13, so that it is not above nothing.
    assert_eq!(verdict.standing, Standing::NotBeyondNoAttention);
    let twice: Vec<String> = lines.iter().map(|text| format!("{text}{text}")).collect();
    let twice: Vec<&str> = twice.iter().map(String::as_str).collect();
    let (verdict, _) = of_lines(&twice);
    assert_eq!(verdict.standing, Standing::NotBeyondWindow);
    let expected = "no more than the window control; below the teacher; needs what its state carries from 64 \
                    tokens to the next 64; no worse without its SSM";
    assert_eq!(verdict.words, expected);
    assert_eq!(summary, "nothing beyond no attention in any of 1 rows");
}

/// Five documents are a difference of more than two standard errors here, but may be chance.
#[test]
fn a_few_documents_that_differ_say_nothing() {
    let standing = |found: &str| {
        let (teacher, nothing) = ("1".repeat(40), "0".repeat(40));
        let student = format!("{found:0<40}");
        let lines = [&teacher, &nothing, &nothing, &student];
        of_lines(&lines.map(String::as_str)).0.standing
    };
    assert_eq!(standing("11111"), Standing::NotBeyondNoAttention);
    assert_eq!(standing("111111"), Standing::BeyondWindow);
}

#[test]
fn a_row_that_says_nothing() {
    let few = of_lines(&["1111 111", "0000 000", "0000 000", "1111 111"]);
    assert_eq!(few.0.words, "7 documents are too few to say");
    assert_eq!(few.1, "no row says anything");
    let none = of_lines(&[
        "0000 0000 00",
        "1111 1111 11",
        "0000 0000 00",
        "1111 1111 11",
    ]);
    assert_eq!(none.0.words, "the teacher passes none of 10");
    // The teacher within a window is as good as the teacher.
    let easy = of_lines(&[
        "1111 1111 11",
        "1111 1111 11",
        "0000 0000 00",
        "1111 1111 11",
    ]);
    assert_eq!(easy.0.standing, Standing::NotBeyondWindow);
    assert!(
        easy.0
            .words
            .ends_with("the teacher itself has no more than the window control here")
    );
    assert_eq!(easy.1, "no row says anything");
}

#[test]
fn a_measure_that_has_failed_says_nothing() {
    let lines = [
        "1111 1111 1111",
        "0000 0000 0000",
        "0000 0000 0000",
        "1111 1111 1111",
    ];
    let models: Vec<_> = lines.iter().map(|text| line(text)).collect();
    let mut audit = audited(vec![measure(NEEDLE, 12, 0)], &[&models]);
    audit.check().unwrap();
    for model in 0..4 {
        let kept = audit.outcomes[model].pop().unwrap();
        audit.outcomes[model].push(Err("it is broken".into()));
        assert_eq!(said(&audit).0.words, "not measured");
        let error = audit.check().unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 4 measurements failed: measure, "),
            "{error}"
        );
        assert!(error.ends_with(": it is broken"), "{error}");
        // Nothing that is shown needs every model.
        for shown in [table(&audit), page(&audit), json(&audit).to_string()] {
            assert!(shown.contains("not measured"), "{shown}");
        }
        audit.outcomes[model] = vec![kept];
    }
}

/// The teacher gets twelve of 16 questions with two choices right, 0.25 above chance, and the student ten.
#[test]
fn what_is_kept_is_measured_from_chance() {
    let kind = Kind::Task(Task::Piqa);
    let models = [
        line("1111 1111 1100 1100"),
        line("1111 1111 0000 1100"),
        line("1111 0000 1111 0000"),
        line("1111 1111 1100 0000"),
    ];
    let row = |audit: &Audit| audit.rows().remove(0);
    let audit = audited(vec![measure(kind, 16, 2)], &[&models]);
    let of = row(&audit);
    assert_eq!((of.group, of.chance()), (Group::Tasks, Some(0.5)));
    assert_eq!(of.value(TEACHER).unwrap().value, 0.75);
    let kept = of.kept(STUDENT).unwrap();
    assert!((kept.value - 0.5).abs() < 1e-12);
    // Residuals (student - chance) - 0.5 * (teacher - chance): 0.25 of ten documents, -0.75 of two, -0.25 of four.
    let residuals = 10.0 * 0.0625 + 2.0 * 0.5625 + 4.0 * 0.0625;
    let expected = (residuals * 16.0 / 15.0_f64).sqrt() / 16.0 / 0.25;
    assert!((kept.stderr.unwrap() - expected).abs() < 1e-12);
    let teachers = of.kept(TEACHER).unwrap();
    assert_eq!((teachers.value, teachers.stderr), (1.0, Some(0.0)));
    // If the teacher is not above chance, there is nothing to keep.
    let models = models.map(|_| line("1100 1100 1100 1100"));
    let audit = audited(vec![measure(kind, 16, 2)], &[&models]);
    assert_eq!(row(&audit).kept(STUDENT), None);
}

/// A mean of tasks counts each task once, whatever its documents, and its error is of both.
#[test]
fn tasks_have_a_mean() {
    let lines = |one: &str, other: &str| (line(one), line(other));
    let (a, b): (Vec<_>, Vec<_>) = [
        lines("1111 1111 1111 1111", "1111 1111"),
        lines("1111 0000 0000 0000", "1111 0000"),
        lines("0000 0000 0000 0000", "0000 0000"),
        lines("1111 1111 0000 0000", "1111 1111"),
    ]
    .into_iter()
    .unzip();
    let measures = [(Task::Piqa, 16), (Task::Winogrande, 8)];
    let measures = measures.map(|(task, n)| measure(Kind::Task(task), n, 2));
    let audit = audited(measures.into(), &[&a, &b]);
    let rows = audit.rows();
    assert_eq!(rows.len(), 3);
    let mean = &rows[2];
    assert_eq!(mean.name, "mean of 2 tasks");
    let value = mean.value(STUDENT).unwrap();
    assert_eq!(value.value, 0.75);
    // The first task alone has 0.5 with an error of sqrt(1/15)/2; the second has no error.
    assert!((value.stderr.unwrap() - (1.0 / 15.0_f64).sqrt() / 4.0).abs() < 1e-12);
    assert_eq!(mean.difference(STUDENT, TEACHER).unwrap().value, -0.25);
    assert_eq!(mean.documents(), 8);
}

/// Perplexity by position takes the tokens that stand there, and is compared by quotients.
#[test]
fn positions_are_parts_of_windows() {
    let kind = Kind::Text { context: 48 };
    let window = |first: f64, rest: f64| [vec![first; 32], vec![rest; 16]].concat();
    let of = |first, rest| vec![window(first, rest); 9];
    let models = [
        of(-1.0, -1.0),
        of(-1.0, -2.0),
        of(-3.0, -3.0),
        of(-1.0, -1.5),
    ];
    let audit = audited(vec![measure(kind, 9, 0)], &[&models]);
    let rows = audit.rows();
    let names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
    assert_eq!(
        names,
        [
            "measure",
            "perplexity, positions 0 to 31",
            "perplexity, positions 32 to 47"
        ]
    );
    assert_eq!(rows[2].value(STUDENT).unwrap().value, -1.5);
    let whole = rows[0].value(STUDENT).unwrap().value;
    assert!((whole + (32.0 + 24.0) / 48.0).abs() < 1e-12);
    let standings = rows
        .iter()
        .map(|row| verdict(&audit, row, STUDENT).standing);
    let expected = [
        Standing::BeyondWindow,
        Standing::NotBeyondWindow,
        Standing::BeyondWindow,
    ];
    assert_eq!(standings.collect::<Vec<_>>(), expected);
    let shown = table(&audit);
    assert!(shown.contains("|4.48 ± 0.00|"), "{shown}");
    assert!(shown.contains("|×1.649 ± 0.000|"), "{shown}");
}

/// The floor of `copy` does not count as kept: (0.5 - 0.25) / (1 - 0.25).
#[test]
fn what_is_kept_of_copies_is_measured_from_the_floor() {
    let models = [
        line("1111 1111"),
        line("0000 0000"),
        line("0000 0000"),
        line("1111 0000"),
    ];
    let kind = Kind::Recall {
        task: Task::Copy,
        length: 512,
    };
    let mut audit = audited(vec![measure(kind, 8, 0)], &[&models]);
    for outcomes in audit.outcomes.iter_mut().flatten() {
        for (i, outcome) in outcomes.as_mut().unwrap().iter_mut().enumerate() {
            outcome.floor = vec![f64::from(u8::from(i < 2))];
        }
    }
    let row = audit.rows().remove(0);
    let kept = row.kept(STUDENT).unwrap();
    assert!((kept.value - 1.0 / 3.0).abs() < 1e-12);
    // Residuals of the student's distance minus a third of the teacher's: 2/3 in two documents, -1/3 in four, 0 in two.
    let residuals = 2.0 * 4.0 / 9.0 + 4.0 / 9.0;
    let expected = (residuals * 8.0 / 7.0_f64).sqrt() / 8.0 / 0.75;
    assert!((kept.stderr.unwrap() - expected).abs() < 1e-12);
    assert_eq!(row.kept(TEACHER).unwrap().value, 1.0);
    assert!(row.kept(WINDOW).unwrap().value < 0.0);
}

/// A student that has no more than what a word's beginning tells of its end is not beyond anything.
#[test]
fn a_copy_must_be_above_its_floor() {
    let lines = [
        "1111 1111 1111",
        "0000 0000 0000",
        "0000 0000 0000",
        "1111 1111 1111",
    ];
    let models: Vec<_> = lines.iter().map(|text| line(text)).collect();
    let kind = Kind::Recall {
        task: Task::Copy,
        length: 512,
    };
    let mut audit = audited(vec![measure(kind, 12, 0)], &[&models]);
    let set_floor = |audit: &mut Audit, floor: f64| {
        for outcomes in audit.outcomes.iter_mut().flatten() {
            for outcome in outcomes.as_mut().unwrap() {
                outcome.floor = vec![floor];
            }
        }
    };
    set_floor(&mut audit, 0.0);
    assert_eq!(said(&audit).0.standing, Standing::BeyondWindow);
    set_floor(&mut audit, 1.0);
    let (verdict, _) = said(&audit);
    assert_eq!(verdict.standing, Standing::NotBeyondWindow);
    assert!(verdict.words.starts_with("no more than its own floor"));
    let rows = audit.rows();
    assert_eq!(rows[0].floor(STUDENT).unwrap().value, 1.0);
}
