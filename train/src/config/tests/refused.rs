//! Values that are refused, with messages that name the key and the allowed values.

use super::*;

#[test]
fn unknown_keys_are_told_the_nearest() {
    for (wrong, nearest) in [
        ("sead", "seed"),
        ("stage3.lrr", "stage3.lr"),
        ("lr", "stage1.lr"),
        ("stage4.lr", "stage1.lr"),
        ("stag3.temprature", "stage3.temperature"),
        ("student.dstate", "student.d_state"),
        ("stage1.target", "stage2.target"),
        ("checkpoint.evry", "checkpoint.every"),
        ("seed.x", "seed"),
    ] {
        let message = complaint(&format!("{wrong}=1"));
        let expected = format!("unknown key `{wrong}`; did you mean `{nearest}`?");
        assert!(message.contains(&expected), "{message}");
    }
    assert!(complaint("=1").contains("unknown key ``"));
    let message = load_text("[stage3]\nlrr = 1").unwrap_err().to_string();
    assert!(
        message.contains("my.toml: unknown key `stage3.lrr`; did you mean `stage3.lr`?"),
        "{message}"
    );
    let message = load_text("[chekpoint]\nevery = 1").unwrap_err().to_string();
    assert!(
        message.contains("unknown key `chekpoint`; did you mean `checkpoint`?"),
        "{message}"
    );
    let message = load_text("preset = \"phi1.5\"").unwrap_err().to_string();
    assert!(message.contains("did you mean `phi-1.5`?"), "{message}");
}

#[test]
fn wrong_types_name_the_key_and_the_type() {
    for (wrong, expected) in [
        (
            "stage3.lr=fast",
            "`stage3.lr` must be a number, or a table of numbers by part, not \"fast\"",
        ),
        (
            "stage3.batch=-1",
            "`stage3.batch` must be a whole number, 0 or more, not -1",
        ),
        (
            "stage3.batch=1.5",
            "`stage3.batch` must be a whole number, 0 or more, not 1.5",
        ),
        ("stage3=5", "`stage3` must be a table of keys, not 5"),
        (
            "student.bias=1",
            "`student.bias` must be true or false, not 1",
        ),
        ("seed", "write key=value"),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{message}");
    }
    let message = load_text("stage3 = 1").unwrap_err().to_string();
    assert!(
        message.contains("`stage3` must be a table of keys"),
        "{message}"
    );
    let message = load_text("[data]\ntrain = \"a.txt\"")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`data.train` must be a list, not \"a.txt\""),
        "{message}"
    );
    // A list that is empty in the schema has no type to compare with: serde's words, and the key.
    let message = complaint("student.attention_layers=a");
    assert!(message.contains("student.attention_layers"), "{message}");
    // Not TOML at all: the line is shown.
    let message = load_text("seed = 1\nname = \"open")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("my.toml") && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn wrong_choices_list_the_right_ones() {
    for (wrong, expected) in [
        (
            "stage2.target=mixr",
            "`mixr`; did you mean `mixer`? (choices: mixer, block)",
        ),
        ("optimizer.decay=matrix", "did you mean `matrices`?"),
        ("student.activation=SiLU", "did you mean `silu`?"),
        ("guard.action=stop", "(choices: log, skip, roll_back)"),
        ("data.packing=docs", "(choices: concatenate, documents)"),
        ("precision=bf15", "`bf15`; did you mean `bf16`?"),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn values_out_of_range_name_the_key_and_the_range() {
    for (wrong, key) in [
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("teacher.model=", "teacher.model"),
        ("data.train=", "data.train"),
        ("data.context=1", "data.context"),
        ("student.n_qk_heads=2", "student.n_v_heads"),
        ("student.chunk_size=0", "student.chunk_size"),
        ("student.attention_layers=2,1", "student.attention_layers"),
        ("optimizer.beta1=1", "optimizer.beta1"),
        ("optimizer.epsilon=0", "optimizer.epsilon"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay"),
        ("optimizer.clip_norm=nan", "optimizer.clip_norm"),
        ("optimizer.clip_part=-1", "optimizer.clip_part"),
        ("optimizer.clip_layer=inf", "optimizer.clip_layer"),
        ("stage1.batch=0", "stage1.batch"),
        ("stage1.micro_batch=3", "stage1.micro_batch"),
        ("stage1.micro_batch=8", "stage1.micro_batch"),
        ("stage1.tokens=0", "stage1.tokens"),
        ("stage1.batch=9223372036854775804", "stage1.tokens"),
        ("stage2.lr=-1e-3", "stage2.lr.mixer"),
        ("stage2.lr=inf", "stage2.lr.mixer"),
        ("stage2.context=1", "stage2.context"),
        ("stage2.context=1_000_000", "stage2.tokens"),
        ("stage2.final_lr=1", "stage2.final_lr"),
        ("stage3.warmup=0.9", "stage3.decay"),
        ("stage3.warmup=1.1", "stage3.warmup"),
        ("stage3.temperature=0", "stage3.temperature"),
        ("stage3.hard_weight=2", "stage3.hard_weight"),
        ("checkpoint.every=0", "checkpoint.every"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("log.every=0", "log.every"),
        ("safety.max_skipped=0", "safety.max_skipped"),
        ("guard.spike=0.5", "guard.spike"),
        ("guard.window=0", "guard.window"),
        ("evaluation.context=0", "evaluation.context"),
        ("evaluation.batch=0", "evaluation.batch"),
        ("evaluation.tasks=piqa,arc", "evaluation.tasks"),
        ("evaluation.tasks=piqa,", "evaluation.tasks"),
    ] {
        let message = complaint(wrong);
        assert!(
            message.contains(&format!("`{key}`")),
            "--set {wrong}: {message}"
        );
    }
    let message = complaint("evaluation.tasks=pica");
    assert!(
        message.contains("lambada_openai, hellaswag, piqa"),
        "{message}"
    );
    let several = ["evaluation.tasks=piqa, mqar".to_owned()];
    assert!(Config::load(Source::Preset("tiny"), &several).is_ok());
    let all_of_it = ["stage3.warmup=0.8", "stage3.decay=0.2"].map(str::to_owned);
    assert!(Config::load(Source::Preset("tiny"), &all_of_it).is_ok());
}
