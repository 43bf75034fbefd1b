//! Which runs can be in lockstep.

use crate::config::{Config, GuardAction, StageConfig};

/// Why a run of `config` is in lockstep with no other, as a phrase; `None` if it can be.
pub(crate) fn alone(config: &Config) -> Option<String> {
    if config.guard.action == GuardAction::RollBack {
        return Some("it may go back to other text (guard.action = \"roll_back\")".to_owned());
    }
    if config.log.metrics_port != 0 {
        return Some("a port answers for one run (log.metrics_port)".to_owned());
    }
    let mut stages = config.stages.iter();
    let cached = stages.find(|stage| !stage.kind.teacher_cache().is_empty());
    cached.map(|stage| {
        let name = &stage.name;
        format!("it reads what the teacher predicts ({name}.teacher_cache)")
    })
}

/// The first key that keeps runs of these configurations from being in lockstep; `None` if no key does. They may differ
/// in the student, its start, its rates, its optimizer, the options of its loss, and the conditions for giving up. Both
/// must be runs for which [`alone`] is `None`.
pub(crate) fn apart(one: &Config, other: &Config) -> Option<String> {
    // All sections by name, so that the compiler reports a section that is added later.
    let Config {
        name: _,
        seed,
        precision,
        teacher,
        data,
        student: _,
        optimizer: _,
        stages,
        checkpoint,
        log,
        safety: _,
        guard: _,
        parallel,
        evaluation,
    } = one;
    let sections = [
        ("seed", *seed != other.seed),
        ("precision", *precision != other.precision),
        ("teacher", *teacher != other.teacher),
        ("data", *data != other.data),
        ("checkpoint", *checkpoint != other.checkpoint),
        ("log", *log != other.log),
        ("parallel", *parallel != other.parallel),
        ("evaluation", *evaluation != other.evaluation),
    ];
    let section = sections.into_iter().find(|(_, differs)| *differs);
    if let Some((section, _)) = section {
        return Some(section.to_owned());
    }
    if stages.len() != other.stages.len() {
        return Some("stages".to_owned());
    }
    let mut pairs = stages.iter().zip(&other.stages);
    pairs.find_map(|(one, other)| apart_in_stage(one, other))
}

/// The same of a stage.
fn apart_in_stage(one: &StageConfig, other: &StageConfig) -> Option<String> {
    let StageConfig {
        name,
        kind,
        tokens,
        batch,
        micro_batch,
        context,
        data,
        schedule: _,
        lr: _,
    } = one;
    if *name != other.name {
        return Some("stages".to_owned());
    }
    let keys = [
        ("kind", kind.name() != other.kind.name()),
        ("tokens", *tokens != other.tokens),
        ("batch", *batch != other.batch),
        ("micro_batch", *micro_batch != other.micro_batch),
        ("context", *context != other.context),
        ("data", *data != other.data),
        ("what is compared", !kind.shares_teacher(&other.kind)),
    ];
    let key = keys.into_iter().find(|(_, differs)| *differs);
    key.map(|(key, _)| format!("{name}.{key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn config(set: &[&str]) -> Config {
        let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
        Config::load(Source::Preset("tiny"), &set).expect("a configuration")
    }

    #[test]
    fn what_concerns_the_student_keeps_nothing_apart() {
        let base = config(&[]);
        for set in [
            &["name=other"][..],
            &["student.init=calibrated"],
            &["student.d_state=128", "student.attention_layers=[1]"],
            &[
                "stage3.loss=reverse_kl",
                "stage3.top_k=20",
                "stage3.hard_weight=0.5",
            ],
            &[
                "stage2.lr=1e-4",
                "stage3.final_lr=1e-5",
                "stage1.warmup=0.5",
            ],
            &["stage2.sequential=0.5"],
            &[
                "optimizer.clip_layer=1",
                "guard.action=skip",
                "safety.max_skipped=3",
            ],
        ] {
            let other = config(set);
            assert_eq!(apart(&base, &other), None, "{set:?}");
            assert_eq!(apart(&other, &base), None, "{set:?}");
            assert_eq!(alone(&other), None, "{set:?}");
        }
    }

    #[test]
    fn what_a_step_reads_does() {
        let base = config(&[]);
        for (set, key) in [
            ("seed=7", "seed"),
            ("precision=bf16", "precision"),
            ("data.context=128", "data"),
            ("stage3.batch=2", "stage3.batch"),
            ("stage2.micro_batch=1", "stage2.micro_batch"),
            ("stage1.tokens=4096", "stage1.tokens"),
            ("stage2.target=block", "stage2.what is compared"),
            ("evaluation.every=7", "evaluation"),
            ("checkpoint.every=7", "checkpoint"),
        ] {
            let other = config(&[set]);
            assert_eq!(apart(&base, &other).as_deref(), Some(key), "{set}");
            assert_eq!(apart(&other, &base).as_deref(), Some(key), "{set}");
        }
        let mut fewer = config(&[]);
        fewer.stages.remove(0);
        assert_eq!(apart(&base, &fewer).as_deref(), Some("stages"));
    }

    #[test]
    fn some_are_alone() {
        for (set, words) in [
            ("guard.action=roll_back", "guard.action"),
            ("stage3.teacher_cache=cache", "stage3.teacher_cache"),
            ("log.metrics_port=9100", "log.metrics_port"),
        ] {
            let reason = alone(&config(&[set])).expect(set);
            assert!(reason.contains(words), "{reason}");
        }
    }
}
