//! Runs that several ranks share, each a thread of this process.

use std::sync::Arc;
use std::thread;

use kernels::runtime::collective::{OnHost, Threads};
use train::parallel::Ranks;

use super::*;

/// Steps of each stage.
const STEPS: usize = 2;

/// Steps of four passes.
fn of_four_passes(overrides: &[&str]) -> Config {
    let tokens = STEPS * 4 * 32;
    // AdamW's first updates are signs of gradients, even of gradients that are only rounding errors, and these differ
    // between numbers of ranks. With this epsilon such a parameter hardly moves.
    let mut all = vec!["optimizer.epsilon=1e-3".to_owned()];
    for stage in 1..=3 {
        all.push(format!("stage{stage}.tokens={tokens}"));
        all.push(format!("stage{stage}.batch=4"));
        all.push(format!("stage{stage}.micro_batch=1"));
    }
    let all = all
        .iter()
        .map(String::as_str)
        .chain(overrides.iter().copied());
    config(&all.collect::<Vec<_>>())
}

/// What each of `world` ranks returns of the run that `options` makes for a rank.
fn on_ranks(
    world: usize,
    options: impl Fn(usize) -> RunOptions + Sync,
) -> Vec<Result<Outcome, TrainError>> {
    thread::scope(|scope| {
        let options = &options;
        let ranks = Threads::new(world).into_iter().enumerate();
        let threads: Vec<_> = ranks
            .map(|(rank, connection)| {
                scope.spawn(move || {
                    let ranks: Ranks<Inner> = Ranks::new(Arc::new(OnHost(connection)));
                    let device = Default::default();
                    Run::<Autodiff<Inner>>::execute_among(options(rank), &device, ranks)
                })
            })
            .collect();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        done.collect()
    })
}

/// The run of `config` by `world` ranks to its end.
fn run_on(world: usize, config: &Config, folder: &Path) {
    let outcomes = on_ranks(world, |_| options(config.clone(), folder, false));
    let finished =
        |outcome: &Result<Outcome, TrainError>| matches!(outcome, Ok(Outcome::Finished(_)));
    assert!(outcomes.iter().all(finished), "{outcomes:?}");
}

/// Stage, step, loss and gradient norm of each step.
fn steps(run: &Path) -> Vec<(String, u64, [f64; 2])> {
    let records = metrics(run).into_iter();
    let steps = records.filter(|record| record["kind"] == "step");
    steps
        .map(|record| {
            let number = |key: &str| record[key].as_f64().expect("a number");
            let stage = record["stage"].as_str().expect("a stage").to_owned();
            (
                stage,
                record["step"].as_u64().expect("a step"),
                [number("loss"), number("grad_norm")],
            )
        })
        .collect()
}

/// Asserts that two runs have the same steps, with the same values apart from rounding.
fn assert_close(name: &str, found: &Path, expected: &Path) {
    // The largest allowed relative differences of a loss and of a norm.
    let most = [1e-6, 1e-4];
    let (found, expected) = (steps(found), steps(expected));
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((&found.0, found.1), (&expected.0, expected.1), "{name}");
        for ((found, expected), most) in found.2.iter().zip(expected.2).zip(most) {
            let error = (found / expected - 1.0).abs();
            assert!(
                error <= most,
                "{name}: {found} is not {expected}: {error:e}"
            );
        }
    }
}

#[test]
fn ranks_have_the_loss_curve_of_one() {
    let one = folder();
    run(of_four_passes(&[]), one.path());
    for (world, overrides) in [
        (1, &[][..]),
        (2, &[]),
        (4, &["parallel.bucket_mib=1"]),
        (4, &["parallel.shard_moments=false"]),
    ] {
        let several = folder();
        run_on(world, &of_four_passes(overrides), several.path());
        let name = format!("{world} ranks {overrides:?}");
        assert_close(&name, several.path(), one.path());
        let last = checkpoint(several.path(), &format!("stage3-step{STEPS:07}"));
        let shards = world > 1 && overrides != ["parallel.shard_moments=false"];
        assert_eq!(
            last.join("optimizer-1.safetensors").exists(),
            shards,
            "{name}"
        );
        assert!(
            checkpoints(several.path())
                .iter()
                .all(|name| !name.starts_with('.'))
        );
        if world == 1 {
            // With one rank, the sums are not different from those without ranks.
            assert!(student(several.path()) == student(one.path()), "{name}");
        }
    }
}

/// The norms of parts and layers, to which gradients are clipped, are those of all ranks.
#[test]
fn ranks_clip_parts_and_layers() {
    let config = |overrides: &[&str]| {
        let clip = ["optimizer.clip_part=0.02", "optimizer.clip_layer=0.01"];
        let mut config = of_four_passes(&[&clip, overrides].concat());
        config
            .choose_stages(&["stage3".to_owned()])
            .expect("a stage of the preset");
        config
    };
    let one = folder();
    run(config(&[]), one.path());
    for overrides in [&[][..], &["parallel.shard_moments=false"]] {
        let two = folder();
        run_on(2, &config(overrides), two.path());
        assert_close(&format!("{overrides:?}"), two.path(), one.path());
    }
}

/// Of four sequences, the first three steps leave the window out in numbers 0 and 2; 0, 1 and 3; 0 and 1. So the passes
/// of some ranks use no window, while those of other ranks do.
#[test]
fn ranks_without_a_window_in_their_passes() {
    let (teacher, one) = (folder(), folder());
    super::llama::teacher(teacher.path());
    let config = |overrides: &[&str]| {
        let set = [
            "student.kind=mamba2_window",
            "student.window=8",
            "student.sinks=2",
            "student.init=copy",
            "student.feature_map=softmax",
            "stage3.window_dropout=0.5",
            // See `of_four_passes`.
            "optimizer.epsilon=1e-3",
            "stage3.tokens=384",
            "stage3.batch=4",
            "stage3.micro_batch=1",
        ];
        let set = [&set[..], overrides].concat();
        let mut config = super::llama::config_with(teacher.path(), &set);
        config
            .choose_stages(&["stage3".to_owned()])
            .expect("a stage of the preset");
        config
    };
    run(config(&[]), one.path());
    for (world, overrides) in [(2, &["parallel.shard_moments=false"][..]), (4, &[])] {
        let several = folder();
        run_on(world, &config(overrides), several.path());
        let name = format!("{world} ranks");
        assert_close(&name, several.path(), one.path());
    }
}

/// Only rank 0 measures within stages and scores tasks, here with a program that records each of its calls.
#[cfg(unix)]
#[test]
fn one_rank_measures() {
    use std::os::unix::fs::PermissionsExt;

    const SCRIPT: &str = r#"#!/bin/sh
for argument in "$@"; do
    if [ "$before" = --json ]; then json=$argument; fi
    before=$argument
done
echo called >> "${0%/*}/calls"
printf '{"results": {"piqa": {"acc": 0.5}}}' > "$json"
"#;
    let parent = folder();
    let script = parent.path().join("infer");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let program = format!("evaluation.infer={}", script.display());
    let set = ["evaluation.every=1", "evaluation.tasks=piqa", &program];
    let run = parent.path().join("run");
    run_on(2, &of_four_passes(&set), &run);
    let scored = metrics(&run)
        .into_iter()
        .filter(|record| record["tasks"]["piqa/acc"] == 0.5);
    // Twice in each stage: after the first of its two steps, and at its end.
    assert_eq!(scored.count(), 6);
    let calls = fs::read_to_string(parent.path().join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 6);
}

#[test]
fn two_runs_of_ranks_have_the_same_bits() {
    let [one, other] = [folder(), folder()];
    for folder in [&one, &other] {
        run_on(2, &of_four_passes(&["stage1.tokens=128"]), folder.path());
    }
    assert!(student(one.path()) == student(other.path()));
    assert_eq!(metrics(one.path()), metrics(other.path()));
}

/// A request to one of two ranks stops both after the same step; the run is continued by one rank, and then by four.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let config = of_four_passes(&["checkpoint.every=100"]);
    let whole = folder();
    run(config.clone(), whole.path());

    let rest = folder();
    let stopped = on_ranks(2, |rank| {
        let options = options(config.clone(), rest.path(), false);
        // Ranks are asked once in each step.
        if rank == 1 {
            stopping(STEPS, options)
        } else {
            options
        }
    });
    assert!(
        stopped
            .iter()
            .all(|end| matches!(end, Ok(Outcome::Stopped))),
        "{stopped:?}"
    );
    let first = format!("stage1-step{STEPS:07}");
    assert_eq!(
        checkpoints(rest.path()),
        [first.as_str(), "stage2-step0000001"]
    );

    // One rank does the step that is left of the stage, and is stopped while it evaluates.
    let options_of = || options(config_of(rest.path()), rest.path(), true);
    assert_eq!(
        execute(stopping(1, options_of())).unwrap(),
        Outcome::Stopped
    );
    assert!(checkpoints(rest.path()).contains(&"stage2-step0000002".to_owned()));

    let finished = on_ranks(4, |_| options_of());
    assert!(
        finished
            .iter()
            .all(|end| matches!(end, Ok(Outcome::Finished(_)))),
        "{finished:?}"
    );
    assert_close("2, 1 and 4 ranks", rest.path(), whole.path());
}

#[test]
fn what_ranks_cannot_share_is_refused() {
    let run = folder();
    let path = run.path().join("run");
    let refused = on_ranks(3, |_| options(of_four_passes(&[]), &path, false));
    for refused in refused {
        let words = refused.unwrap_err().to_string();
        assert!(
            words.contains("3 ranks") && words.contains("4 passes"),
            "{words}"
        );
    }
    assert!(!path.exists());

    // All ranks get the error that rank 0 returns.
    config(&[]).write(&run.path().join("config.toml")).unwrap();
    let refused = on_ranks(2, |_| options(of_four_passes(&[]), run.path(), false));
    let words = refused
        .into_iter()
        .map(|refused| refused.unwrap_err().to_string());
    let words: Vec<_> = words.collect();
    assert!(words[0].contains("holds a run already"), "{words:?}");
    assert!(
        words[1].starts_with("rank 0 has failed: ") && words[1].ends_with(&words[0]),
        "{words:?}"
    );
}

/// A checkpoint without one of its shares is not used.
#[test]
fn a_lost_share_is_noticed() {
    let config = of_four_passes(&["checkpoint.every=1", "stage1.tokens=384"]);
    let run = folder();
    let stopped = on_ranks(2, |_| {
        stopping(2, options(config.clone(), run.path(), false))
    });
    assert!(
        stopped
            .iter()
            .all(|end| matches!(end, Ok(Outcome::Stopped))),
        "{stopped:?}"
    );
    let newest = checkpoints(run.path()).pop().unwrap();
    fs::remove_file(checkpoint(run.path(), &newest).join("optimizer-1.safetensors")).unwrap();
    let summary = resume(run.path());
    let notes = notes(&summary);
    assert!(
        notes.contains(&newest) && notes.contains("optimizer-1.safetensors"),
        "{notes}"
    );
}
