//! Runs with the mixers that are there for comparison.

use super::*;

/// All three stages train them, and the exported student is read back. A start from the
/// attention is refused, since they take nothing over.
#[test]
fn mixers_for_comparison_are_distilled() {
    for (kind, option) in [
        ("toeplitz", "student.length=24"),
        ("low_rank", "student.d_state=16"),
    ] {
        let run_folder = folder();
        let kind_is = format!("student.kind={kind}");
        let summary = run(config(&[kind_is.as_str(), option]), run_folder.path());
        assert!(summary.student_perplexity.is_finite(), "{kind}");
        let losses = |stage: &str| -> Vec<f64> {
            let records = metrics(run_folder.path()).into_iter();
            let steps =
                records.filter(|record| record["kind"] == "step" && record["stage"] == stage);
            steps
                .map(|record| record["loss"].as_f64().unwrap())
                .collect()
        };
        for (stage, steps) in ["stage1", "stage2", "stage3"].into_iter().zip(STEPS) {
            let losses = losses(stage);
            assert_eq!(losses.len(), steps, "{kind}, {stage}");
            assert!(losses.iter().all(|loss| *loss > 0.0), "{kind}: {losses:?}");
        }
        let student = run_folder.path().join("student");
        let (config_of_student, _) =
            model::load_any::<Inner>(student, &Default::default()).expect("a student");
        let mixers = model::Family::network(&config_of_student).mixers;
        assert!(mixers.iter().all(|mixer| mixer.kind() == kind));

        let other = folder();
        let config = config(&[kind_is.as_str(), option, "student.init=copy"]);
        let refused = execute(options(config, other.path(), false));
        let message = refused.expect_err("there is no such start").to_string();
        assert!(message.starts_with("student.init: layer 0"), "{message}");
        assert!(message.contains(kind), "{message}");
    }
}
