//! Which values make sense, key by key.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{Config, ConfigError, Part, Target};

/// The first value of `config` that makes no sense, as an error that says what would.
pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let name_is_plain = !config.name.is_empty()
        && !config.name.starts_with('.')
        && config
            .name
            .chars()
            .all(|c| c.is_alphanumeric() || "._-".contains(c));
    require(
        name_is_plain,
        "name",
        quoted(&config.name),
        "a folder's name of letters, digits, `.`, `_` and `-`, not starting with `.`",
    )?;
    let ascending = config.stages.windows(2).all(|pair| pair[0] < pair[1]);
    let known = config.stages.iter().all(|stage| (1..=3).contains(stage));
    require(
        ascending && known && !config.stages.is_empty(),
        "stages",
        format!("{:?}", config.stages),
        "at least one of 1, 2, 3, in ascending order",
    )?;

    require(
        !config.teacher.model.is_empty(),
        "teacher.model",
        quoted(""),
        "a folder in Hugging Face format, or OWNER/NAME on its hub",
    )?;

    require(
        !config.data.train.is_empty(),
        "data.train",
        "[]",
        "at least one file or folder of text",
    )?;
    at_least(2, "data.context", config.data.context)?;

    let student = &config.student;
    at_least(1, "student.d_state", student.d_state)?;
    at_least(1, "student.n_qk_heads", student.n_qk_heads)?;
    at_least(1, "student.n_v_heads", student.n_v_heads)?;
    require(
        student.n_v_heads.is_multiple_of(student.n_qk_heads),
        "student.n_v_heads",
        student.n_v_heads,
        &format!("a multiple of n_qk_heads, {}", student.n_qk_heads),
    )?;
    at_least(1, "student.d_conv", student.d_conv)?;
    at_least(1, "student.expand", student.expand)?;
    at_least(1, "student.chunk_size", student.chunk_size)?;
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

    for number in 1..=3 {
        validate_stage(config, number)?;
    }
    positive("stage3.temperature", config.stage3.temperature)?;
    within(0.0..=1.0, "stage3.hard_weight", config.stage3.hard_weight)?;

    at_least(1, "checkpoint.every", config.checkpoint.every)?;
    at_least(1, "checkpoint.keep", config.checkpoint.keep)?;
    at_least(1, "log.every", config.log.every)?;
    at_least(1, "safety.max_skipped", config.safety.max_skipped)?;
    at_least(2, "evaluation.context", config.evaluation.context)?;
    at_least(1, "evaluation.batch", config.evaluation.batch)
}

fn validate_stage(config: &Config, number: u8) -> Result<(), ConfigError> {
    let stage = config.stage(number);
    let key = |name: &str| format!("stage{number}.{name}");
    at_least(1, &key("batch"), stage.batch)?;
    at_least(1, &key("micro_batch"), stage.micro_batch)?;
    require(
        stage.batch.is_multiple_of(stage.micro_batch),
        &key("micro_batch"),
        stage.micro_batch,
        &format!("a divisor of batch, {}", stage.batch),
    )?;
    let per_step = stage.batch.checked_mul(config.data.context);
    require(
        per_step.is_some_and(|per_step| per_step as u64 <= stage.tokens),
        &key("tokens"),
        stage.tokens,
        &format!(
            "at least one batch, {} sequences of {}; to leave the stage out, shorten `stages`",
            stage.batch, config.data.context
        ),
    )?;
    positive(&key("lr"), stage.lr)?;
    within(0.0..=stage.lr, &key("final_lr"), stage.final_lr)?;
    within(0.0..=1.0, &key("warmup"), stage.warmup)?;
    within(0.0..=1.0, &key("decay"), stage.decay)?;
    require(
        // The shares are decimal: 0.9 + 0.1 may come out above 1 by a rounding.
        stage.warmup + stage.decay <= 1.0 + 1e-9,
        &key("decay"),
        stage.decay,
        &format!("with warmup, {}, at most 1 in all", stage.warmup),
    )?;
    require(
        !stage.train.is_empty(),
        &key("train"),
        "[]",
        "at least one of mixer, mlp, norm, embedding, head; or all",
    )?;
    let reached = reached(number, config.stage2.target);
    let name = |part: &Part| format!("{part:?}").to_lowercase();
    require(
        stage.train.iter().all(|part| reached.contains(part)),
        &key("train"),
        format!("{:?}", stage.train).to_lowercase(),
        &format!(
            "{}, since this stage's loss has no gradient for others",
            reached.iter().map(name).collect::<Vec<_>>().join(", ")
        ),
    )
}

/// The parts of the student that the loss of stage `number` depends on.
fn reached(number: u8, target: Target) -> &'static [Part] {
    use Part::{All, Embedding, Head, Mixer, Mlp, Norm};
    match (number, target) {
        (1, _) | (2, Target::Mixer) => &[Mixer, Norm, All],
        (2, Target::Block) => &[Mixer, Norm, Mlp, All],
        _ => &[Mixer, Mlp, Norm, Embedding, Head, All],
    }
}

fn require(holds: bool, key: &str, value: impl Display, allowed: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        allowed: allowed.to_owned(),
    })
}

fn at_least(least: usize, key: &str, value: usize) -> Result<(), ConfigError> {
    require(value >= least, key, value, &format!("{least} or more"))
}

fn positive(key: &str, value: f64) -> Result<(), ConfigError> {
    require(
        value > 0.0 && value.is_finite(),
        key,
        value,
        "above 0 and finite",
    )
}

fn not_negative(key: &str, value: f64) -> Result<(), ConfigError> {
    require(
        value >= 0.0 && value.is_finite(),
        key,
        value,
        "0 or more, and finite",
    )
}

fn within(range: RangeInclusive<f64>, key: &str, value: f64) -> Result<(), ConfigError> {
    let allowed = format!("from {} to {}", range.start(), range.end());
    require(range.contains(&value), key, value, &allowed)
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
