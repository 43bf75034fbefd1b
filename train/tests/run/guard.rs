//! The reaction to a spike of the loss is the same however often the run is stopped.

use super::*;

/// Steps of the stage with the guard.
const WATCHED: usize = 12;

/// A run of the last stage with this guard, and others after it.
fn watched(guard: &[&str]) -> Config {
    let tokens = format!("stage3.tokens={}", WATCHED * 2 * 32);
    let all = [
        &[tokens.as_str(), "guard.window=3", "checkpoint.every=4"],
        guard,
    ]
    .concat();
    config_of_stages(&["stage3"], &all)
}

/// The losses of the run in `folder`, in its order.
fn losses(run: &Path) -> Vec<f64> {
    let records = metrics(run).into_iter();
    let steps = records.filter(|record| record["kind"] == "step");
    steps.map(|step| step["loss"].as_f64().unwrap()).collect()
}

/// Stops the run of `config` again and again, at every `n`-th time that it asks, until it is done.
fn stopped_often(config: &Config, run: &Path, n: usize) {
    let mut outcome = execute(stopping(4 + n, options(config.clone(), run, false)));
    let mut stops = 0;
    while outcome.expect("a run without errors") == Outcome::Stopped {
        stops += 1;
        assert!(stops < 100, "the run does not advance");
        outcome = execute(stopping(n, options(config_of(run), run, true)));
    }
    assert!(stops > 1);
}

/// Of three numbers.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[1]
}

/// A value of `guard.spike` with which exactly one step of a run is a spike, and that step. The run does not react to
/// it.
fn one_spike() -> (f64, usize) {
    let folder = folder();
    let run = folder.path();
    super::run(watched(&["guard.spike=0"]), run);
    let losses = losses(run);
    let ratio = |step: usize| losses[step] / median(losses[step - 3..step].to_vec());
    let mut ratios: Vec<_> = (3..WATCHED).map(|step| (ratio(step), step + 1)).collect();
    ratios.sort_by(|a, b| b.0.total_cmp(&a.0));
    let [(highest, step), (next, _)] = ratios[..2] else {
        panic!("{ratios:?}")
    };
    assert!(highest > 1.0, "{ratios:?}");
    (0.5 * (highest + next.max(1.0)), step)
}

#[test]
fn a_spike_is_said_and_nothing_done() {
    let (spike, step) = one_spike();
    let (quiet, noticed) = (folder(), folder());
    run(watched(&["guard.spike=0"]), quiet.path());
    let summary = run(
        watched(&[&format!("guard.spike={spike:?}")]),
        noticed.path(),
    );
    assert!(student(quiet.path()) == student(noticed.path()));
    let said = notes(&summary);
    assert!(
        said.contains(&format!("a spike of the loss at step {step}:")),
        "{said}"
    );
    let in_log = metrics(noticed.path()).into_iter();
    let in_log: Vec<_> = in_log.filter(|record| record["kind"] == "note").collect();
    assert_eq!(in_log.len(), 1);
    assert_eq!(in_log[0]["step"], step);
    assert_eq!(summary.skipped_steps, 0);
}

#[test]
fn a_spike_is_skipped() {
    let (spike, step) = one_spike();
    let spike = format!("guard.spike={spike:?}");
    let config = watched(&[&spike, "guard.action=skip", "safety.max_skipped=100"]);
    let whole = folder();
    let summary = run(config.clone(), whole.path());
    assert!(summary.skipped_steps > 0);
    let records = metrics(whole.path()).into_iter();
    let mut skipped = records.filter(|record| record["skipped"] == true);
    assert_eq!(skipped.next().expect("a skipped step")["step"], step);
    for n in 2..4 {
        let stopped = folder();
        stopped_often(&config, stopped.path(), n);
        assert!(student(stopped.path()) == student(whole.path()), "{n}");
        assert_eq!(metrics(stopped.path()), metrics(whole.path()), "{n}");
    }
}

#[test]
fn a_run_goes_back_from_a_spike() {
    let (spike, step) = one_spike();
    let spike = format!("guard.spike={spike:?}");
    let config = watched(&[&spike, "guard.action=roll_back", "checkpoint.keep=2"]);
    let (whole, quiet) = (folder(), folder());
    run(watched(&["guard.spike=0"]), quiet.path());
    let summary = run(config.clone(), whole.path());
    let said = notes(&summary);
    assert!(
        said.contains(&format!(
            "after a spike at step {step}, the run has gone back"
        )),
        "{said}"
    );
    // Each step is recorded once; up to the checkpoint the losses are those of the run without a reaction, then others.
    let (all, before) = (losses(whole.path()), losses(quiet.path()));
    assert_eq!(all.len(), WATCHED);
    let due = (step - 1) / 4 * 4;
    assert_eq!(all[..due], before[..due]);
    assert_ne!(all[due], before[due]);
    for n in 2..4 {
        let stopped = folder();
        stopped_often(&config, stopped.path(), n);
        assert!(student(stopped.path()) == student(whole.path()), "{n}");
        assert_eq!(metrics(stopped.path()), metrics(whole.path()), "{n}");
        assert!(checkpoints(stopped.path()).len() <= 3);
    }
}

/// A calibrated student of the bundled teacher, with a rate that destroys it and with one that does not. The log and
/// the summary report the collapse of the first within fifty steps, and none of the second.
#[test]
fn a_rate_that_destroys_a_student_is_said() {
    let steps = 50;
    let trained = |lr: &str, run: &Path| {
        let tokens = format!("stage3.tokens={}", steps * 2 * 32);
        let lr = format!("stage3.lr={lr}");
        let set = ["student.init=calibrated", "student.bias=true", &tokens, &lr];
        super::run(config_of_stages(&["stage3"], &set), run)
    };
    let (lost, healthy) = (folder(), folder());
    let said = "the student is losing what it had";
    let summary = trained("1.0", lost.path());
    let found: Vec<_> = summary
        .notes
        .iter()
        .filter(|note| note.text.contains(said))
        .collect();
    assert_eq!(found.len(), 1, "{:?}", losses(lost.path()));
    assert!(found[0].step < steps && found[0].stage == "stage3");
    let in_log = metrics(lost.path()).into_iter();
    let mut in_log = in_log.filter(|record| record["kind"] == "note");
    assert!(in_log.any(|note| note["text"] == found[0].text.as_str()));

    // The preset's 7e-4 is too much for such a start too.
    let summary = trained("2e-5", healthy.path());
    assert!(!notes(&summary).contains(said), "{}", notes(&summary));
}
