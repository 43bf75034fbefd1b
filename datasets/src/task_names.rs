//! The names of the tasks that `infer eval` scores and that the configuration of a run can name.

/// The six tasks of the paper, by their names in lm-evaluation-harness, and the probes.
pub const TASK_NAMES: [&str; 10] = [
    "lambada_openai",
    "hellaswag",
    "piqa",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "needle",
    "needles",
    "copy",
    "mqar",
];
