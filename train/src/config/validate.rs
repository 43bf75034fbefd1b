//! Which values make sense, key by key.

use std::collections::HashSet;

use datasets::TASK_NAMES;
use datasets::probes::Probe;
use model::Part;

use super::layers::section_names;
use super::{Config, GuardAction, Packing, StageConfig, TextSource};
use crate::limits::{OutOfRange, at_least, not_negative, positive, require};

/// The most bytes of a stage's name. The names of its checkpoints are longer, and file systems allow 255.
const LONGEST_NAME: usize = 100;

/// The first value of `config` that makes no sense, as an error that says what would.
pub(super) fn validate(config: &Config) -> Result<(), OutOfRange> {
    require(
        is_plain(&config.name, "._-") && !config.name.starts_with('.'),
        "name",
        quoted(&config.name),
        "a folder's name of letters, digits, `.`, `_` and `-`, not starting with `.`",
    )?;
    require(
        !config.teacher.model.is_empty(),
        "teacher.model",
        quoted(""),
        "a folder in Hugging Face format, a GGUF file, or OWNER/NAME, OWNER/NAME:FILE.gguf or OWNER/NAME:Q4_K_M on its hub",
    )?;

    require(
        !config.data.train.is_empty(),
        "data.train",
        "[]",
        "at least one file or folder of text",
    )?;
    validate_text("data.train", &config.data.train)?;
    validate_text("data.validation", &config.data.validation)?;
    let mut held_out = config.data.validation.iter();
    let made = held_out.find(|text| text.probes().is_some());
    require(
        made.is_none(),
        "data.validation",
        quoted(made.map_or("", |text| &text.path)),
        "text that is read: perplexity on documents that are made says little",
    )?;
    at_least(2, "data.context", config.data.context)?;

    let student = &config.student;
    if let Some(mamba) = student.mixer.mamba() {
        at_least(1, "student.d_state", mamba.d_state)?;
        at_least(1, "student.n_qk_heads", mamba.n_qk_heads)?;
        at_least(1, "student.n_v_heads", mamba.n_v_heads)?;
        require(
            mamba.n_v_heads.is_multiple_of(mamba.n_qk_heads),
            "student.n_v_heads",
            mamba.n_v_heads,
            &format!("a multiple of n_qk_heads, {}", mamba.n_qk_heads),
        )?;
        at_least(1, "student.d_conv", mamba.d_conv)?;
        at_least(1, "student.expand", mamba.expand)?;
        at_least(1, "student.chunk_size", mamba.chunk_size)?;
    }
    require(
        student
            .attention_layers
            .windows(2)
            .all(|pair| pair[0] < pair[1]),
        "student.attention_layers",
        format!("{:?}", student.attention_layers),
        "0-based layers in ascending order",
    )?;

    let optimizer = &config.optimizer;
    for (key, beta) in [
        ("optimizer.beta1", optimizer.beta1),
        ("optimizer.beta2", optimizer.beta2),
    ] {
        require(
            (0.0..1.0).contains(&beta),
            key,
            beta,
            "from 0 up to, not including, 1",
        )?;
    }
    positive("optimizer.epsilon", optimizer.epsilon)?;
    not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
    not_negative("optimizer.clip_norm", optimizer.clip_norm)?;
    not_negative("optimizer.clip_part", optimizer.clip_part)?;
    not_negative("optimizer.clip_layer", optimizer.clip_layer)?;

    not_empty(&config.stages)?;
    let sections = section_names();
    let mut names = HashSet::new();
    for stage in &config.stages {
        // The name becomes a part of file names, on file systems that may not distinguish upper and lower case, and of
        // keys.
        require(
            is_plain(&stage.name, "_-")
                && stage.name.len() <= LONGEST_NAME
                && !sections.contains(&stage.name)
                && names.insert(stage.name.to_lowercase()),
            "stages.name",
            quoted(&stage.name),
            &format!(
                "a name of letters, digits, `_` and `-`, of {LONGEST_NAME} bytes at most, that no other stage \
                 and no section has"
            ),
        )?;
        validate_stage(config, stage).map_err(|wrong| wrong.under(&stage.name))?;
    }

    at_least(1, "checkpoint.every", config.checkpoint.every)?;
    at_least(1, "checkpoint.keep", config.checkpoint.keep)?;
    at_least(1, "log.every", config.log.every)?;
    at_least(1, "safety.max_skipped", config.safety.max_skipped)?;
    let spike = config.guard.spike;
    require(
        spike == 0.0 || (spike >= 1.0 && spike.is_finite()),
        "guard.spike",
        spike,
        "1 or more, or 0 for none",
    )?;
    at_least(1, "guard.window", config.guard.window)?;
    at_least(1, "parallel.bucket_mib", config.parallel.bucket_mib)?;
    at_least(2, "evaluation.context", config.evaluation.context)?;
    at_least(1, "evaluation.batch", config.evaluation.batch)?;
    let unknown = config.evaluation.task_names();
    let unknown = unknown.into_iter().find(|name| !TASK_NAMES.contains(name));
    require(
        unknown.is_none(),
        "evaluation.tasks",
        quoted(unknown.unwrap_or_default()),
        &format!(
            "names with commas between them, of {}",
            TASK_NAMES.join(", ")
        ),
    )
}

/// Checks the weights of `sources`.
fn validate_text(key: &str, sources: &[TextSource]) -> Result<(), OutOfRange> {
    let weights = sources.iter().filter_map(|source| source.weight);
    for weight in weights {
        positive(&format!("{key}.weight"), weight)?;
    }
    let unknown = sources.iter().find_map(TextSource::unknown_probe);
    let names: Vec<String> = Probe::ALL.iter().map(Probe::to_string).collect();
    require(
        unknown.is_none(),
        key,
        quoted(unknown.unwrap_or_default()),
        &format!("after probes: one of {}", names.join(", ")),
    )?;
    let is_made = sources.iter().any(|source| source.probes().is_some());
    let is_weighted = sources.iter().any(|source| source.weight.is_some());
    require(
        !is_made || is_weighted || sources.len() == 1,
        &format!("{key}.weight"),
        "none",
        "a share for each entry, where one of them is made: { path = \"probes:needle\", weight = 0.03 }",
    )
}

/// An error unless there are stages.
pub(super) fn not_empty(stages: &[StageConfig]) -> Result<(), OutOfRange> {
    require(!stages.is_empty(), "stages", "[]", "at least one stage")
}

fn validate_stage(config: &Config, stage: &StageConfig) -> Result<(), OutOfRange> {
    validate_text("data", &stage.data)?;
    // A text that is fetched or made while it is read is not complete at the start, so no part of it can be held out.
    let incoming = config
        .text(stage)
        .iter()
        .find(|text| text.on_hub().is_some() || text.probes().is_some());
    require(
        incoming.is_none() || !config.data.validation.is_empty(),
        "data",
        quoted(incoming.map_or("", |text| &text.path)),
        "a data set on the hub, or probes, together with data.validation, such as its own validation split",
    )?;
    at_least(1, "batch", stage.batch)?;
    at_least(1, "micro_batch", stage.micro_batch)?;
    require(
        stage.batch.is_multiple_of(stage.micro_batch),
        "micro_batch",
        stage.micro_batch,
        &format!("a divisor of batch, {}", stage.batch),
    )?;
    let context = config.context(stage);
    at_least(2, "context", context)?;
    let per_step = stage.batch.checked_mul(context);
    require(
        per_step.is_some_and(|per_step| per_step as u64 <= stage.tokens),
        "tokens",
        stage.tokens,
        &format!(
            "at least one batch, {} sequences of {context}; to leave the stage out, choose others by --stages",
            stage.batch
        ),
    )?;
    let reached = stage.kind.reached();
    let names = |parts: &[Part]| {
        parts
            .iter()
            .map(|part| part.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    require(
        !stage.lr.0.is_empty(),
        "lr",
        "without a rate",
        &format!("a rate for at least one of {}", names(reached)),
    )?;
    for (part, rate) in &stage.lr.0 {
        let key = format!("lr.{}", part.name());
        let allowed = format!(
            "no rate: this stage's loss has a gradient for {} only",
            names(reached)
        );
        require(reached.contains(part), &key, rate, &allowed)?;
        positive(&key, *rate)?;
    }
    let dropout = stage.kind.window_dropout();
    require(
        dropout == 0.0 || config.student.mixer.has_window(),
        "window_dropout",
        dropout,
        "0 unless student.kind is mamba2_window: no other mixer has a window that could be left out",
    )?;
    stage.schedule.validate(stage.lr.lowest())?;
    let cache = stage.kind.teacher_cache();
    require(
        cache.is_empty() || config.guard.action != GuardAction::RollBack,
        "teacher_cache",
        quoted(cache),
        "none with guard.action = \"roll_back\": a run that has rolled back reads text that is not in it",
    )?;
    require(
        cache.is_empty() || config.data.packing == Packing::Concatenate,
        "teacher_cache",
        quoted(cache),
        "none with data.packing = \"documents\": predictions are written for rows that are one text",
    )?;
    stage.kind.validate()
}

/// Whether `name` is of letters, digits and the characters of `more` alone.
fn is_plain(name: &str, more: &str) -> bool {
    let mut letters = name.chars();
    !name.is_empty() && letters.all(|c| c.is_alphanumeric() || more.contains(c))
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
