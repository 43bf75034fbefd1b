//! Runs in lockstep give the same results as alone.

use train::ablation::{Ablation, Recipe, Variant};

use super::resume::assert_same;
use super::*;

/// Students that differ in everything that may differ: mixers, starts, rates, losses and clipping.
const RECIPES: [&str; 4] = [
    "name=base; student.d_state=12; student.n_v_heads=4; student.n_qk_heads=4",
    "name=other; student.d_state=12; student.n_v_heads=4; student.n_qk_heads=4; student.init=copy; stage1.lr=1e-4; \
     stage2.sequential=0.5; stage3.loss=reverse_kl; stage3.recompute=true; optimizer.clip_layer=1",
    "name=window; student.kind=mamba2_window; student.d_state=12; student.n_v_heads=4; student.n_qk_heads=4; \
     student.window=8; student.sinks=2; stage2.window_dropout=0.5; stage3.window_dropout=0.5; stage3.top_k=5; \
     stage3.hard_weight=0.5; guard.action=skip",
    "name=whole; student.kind=toeplitz; student.length=32",
];

/// A comparison of all stages in `folder`, with two passes a step and measurements within stages.
fn comparison(folder: &Path, recipes: &[&str], overrides: &[&str], lockstep: usize) -> Ablation {
    let recipe = |text: &&str| text.parse::<Recipe>().expect("a recipe");
    let recipes: Vec<_> = recipes.iter().map(recipe).collect();
    let passes = [
        "stage1.micro_batch=1",
        "stage2.micro_batch=1",
        "stage3.micro_batch=1",
        "evaluation.every=3",
    ];
    let set = small(&[&passes[..], overrides].concat());
    let tiny = Source::Preset("tiny");
    Ablation {
        title: "in little".to_owned(),
        variants: Variant::resolve(tiny, &set, &[], &recipes, &[1]).expect("variants"),
        seeds: vec![1],
        folder: folder.to_owned(),
        lockstep,
        backend: "flex".to_owned(),
        stop: StopRequest::default(),
    }
}

fn compare(ablation: &Ablation) -> Option<String> {
    let table = ablation.execute::<Autodiff<Inner>>(&Default::default());
    table.expect("a comparison without errors")
}

fn run_of(comparison: &Path, name: &str) -> PathBuf {
    comparison.join(format!("{name}-seed-1"))
}

/// The ratios of `table.json`.
fn ratios(folder: &Path) -> Vec<Value> {
    let json = fs::read(folder.join("table.json")).expect("a table");
    let table: Value = serde_json::from_slice(&json).expect("JSON");
    let rows = table["variants"].as_array().expect("rows");
    rows.iter().map(|row| row["ratios"].clone()).collect()
}

#[test]
fn each_is_what_it_is_alone() {
    let (teacher, alone, together, killed) = (folder(), folder(), folder(), folder());
    super::llama::teacher(teacher.path());
    let model = format!("teacher.model={}", teacher.path().display());
    let all = |folder: &Path, lockstep| comparison(folder, &RECIPES, &[&model], lockstep);
    compare(&all(alone.path(), 1)).expect("a table");
    let names = ["base", "other", "window", "whole"];

    // All runs were stopped in the second stage at the same step, which shows that they were in lockstep.
    let mut stopped = all(together.path(), 4);
    let second = run_of(together.path(), "base").join("checkpoints/stage2-step0000002");
    stopped.stop = StopRequest::when(move || second.exists());
    assert_eq!(compare(&stopped), None);
    let newest = |comparison: &Path, name: &str| {
        let names = checkpoints(&run_of(comparison, name));
        names.last().expect("a checkpoint").clone()
    };
    let at = newest(together.path(), "base");
    assert!(at.starts_with("stage2-step"), "{at}");
    for name in names {
        assert_eq!(newest(together.path(), name), at, "{name}");
    }

    // The state after a kill, when one run had written less than the others, and one nothing.
    for name in names {
        copy_folder(&run_of(together.path(), name), &run_of(killed.path(), name));
    }
    fs::remove_dir_all(checkpoint(&run_of(killed.path(), "base"), &at)).unwrap();
    fs::remove_dir_all(run_of(killed.path(), "window").join("checkpoints")).unwrap();

    for comparison_of in [together.path(), killed.path()] {
        let table = compare(&all(comparison_of, 4)).expect("a table");
        assert!(table.contains("in lockstep"), "{table}");
        for name in names {
            assert_same(
                name,
                &run_of(comparison_of, name),
                &run_of(alone.path(), name),
            );
        }
        assert_eq!(ratios(comparison_of), ratios(alone.path()));
    }
}

/// A run that diverges leaves the others, and a run that cannot be in lockstep goes alone.
#[test]
fn others_go_on() {
    let (alone, together) = (folder(), folder());
    let recipes = [
        "name=wild; stage3.lr=1e30; safety.max_skipped=1",
        "name=base",
        "name=back; guard.action=roll_back",
        "name=low; stage3.lr=1e-5",
    ];
    let last = |folder: &Path, recipes: &[&str], lockstep| {
        let mut comparison = comparison(folder, recipes, &["evaluation.every=0"], lockstep);
        for variant in &mut comparison.variants {
            let stages = ["stage3".to_owned()];
            let configs = variant.configs.iter_mut();
            configs.for_each(|config| config.choose_stages(&stages).expect("a stage"));
        }
        compare(&comparison)
    };
    last(alone.path(), &recipes[1..], 1).expect("a table");
    let table = last(together.path(), &recipes, 2).expect("a table");
    assert!(table.contains("diverged"), "{table}");
    for name in ["base", "back", "low"] {
        let run = run_of(together.path(), name);
        assert!(
            student(&run) == student(&run_of(alone.path(), name)),
            "{name}"
        );
    }
    let found = ratios(together.path());
    assert!(found[0][0].is_null());
    assert_eq!(found[1..], ratios(alone.path()));
}
