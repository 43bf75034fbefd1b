//! Models of Llama's shape, as floats and in 8 and 4 bits: every command that needs only a model, and `infer quantize`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use kernels::runtime::Flex;
use model::{CausalLm, LlamaConfig, LlamaFamily};

use super::{failure, output, stderr, stdout};
use crate::support::{copy_tokenizer, llama_like_folders};

/// Every command that needs only a model: generation, generation from a state file, both in 8 and in 4 bits too, the
/// perplexity of a file, and a measurement of speed.
#[test]
fn families_of_llamas_shape() {
    let files = tempfile::tempdir().unwrap();
    let (state, text) = (files.path().join("state"), files.path().join("text.txt"));
    let prompt =
        "It was the best of times, it was the worst of times, it was the age of wisdom, and";
    fs::write(&text, prompt).unwrap();
    let (state, text) = (state.to_str().unwrap(), text.to_str().unwrap());
    for (name, folder) in llama_like_folders() {
        let folder = folder.path();
        let run = |arguments: &[&str]| {
            let output = output(folder, arguments);
            assert!(output.status.success(), "{name}: {}", stderr(&output));
            stdout(&output).trim_end_matches('\n').to_owned()
        };
        let whole = run(&["--max-tokens", "24", prompt]);
        assert!(!whole.is_empty(), "{name}");
        // The prompt is longer than Mistral's window.
        let saved = run(&["--max-tokens", "12", "--save-state", state, prompt]);
        assert!(whole.starts_with(&saved), "{name}");
        assert_eq!(
            run(&["--max-tokens", "24", "--load-state", state]),
            whole,
            "{name}"
        );
        for dtype in ["int8", "int4"] {
            let expected = run(&["--max-tokens", "12", "--dtype", dtype, prompt]);
            // The same with a folder whose weights are stored in these bits.
            let out = files.path().join(format!("{name}-{dtype}"));
            let quantize = quantize(folder, dtype, &out);
            assert!(quantize.status.success(), "{name}: {}", stderr(&quantize));
            assert!(
                stdout(&quantize).contains(&format!(" in {dtype}")),
                "{name}"
            );
            let again = output(&out, &["--max-tokens", "12", prompt]);
            assert_eq!(stdout(&again).trim_end_matches('\n'), expected, "{name}");
        }

        let infer = |command: &str, arguments: &[&str]| {
            let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
            infer.arg(command).arg("--model").arg(folder);
            let output = infer.args(["--backend", "flex"]).args(arguments).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{name}: {}", stderr(&output));
            stdout(&output).to_owned()
        };
        assert!(
            infer("perplexity", &[text]).contains("perplexity"),
            "{name}"
        );
        let sizes = [
            "--prompts",
            "40",
            "--batches",
            "1,2",
            "--tokens",
            "4",
            "--json",
        ];
        let measured: serde_json::Value = serde_json::from_str(&infer("bench", &sizes)).unwrap();
        assert_eq!(measured["rows"].as_array().unwrap().len(), 2, "{name}");
    }
}

/// `infer quantize` of the model in `folder`.
fn quantize(folder: &Path, dtype: &str, out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["quantize", "--dtype", dtype, "--model"])
        .arg(folder)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap()
}

/// The summary counts weights that 4 or 8 bits cannot store; if that is true of all weights, nothing is written.
#[test]
fn rows_of_odd_lengths_stay_as_they_are() {
    let files = tempfile::tempdir().unwrap();
    let folder = |width: usize, hidden: usize| {
        let folder = files.path().join(format!("{width}-{hidden}"));
        let mut config = LlamaConfig {
            vocab_size: 4096,
            hidden_size: width,
            intermediate_size: hidden,
            num_hidden_layers: 1,
            tie_word_embeddings: false,
            ..LlamaConfig::default_of(LlamaFamily::Llama)
        };
        config.attention.n_heads = 1;
        config.attention.n_kv_heads = 1;
        config.attention.head_dim = Some(6);
        let model = CausalLm::<Flex>::init(&config, 3, &Default::default());
        model::save(&config, &model, &folder).unwrap();
        copy_tokenizer(&folder);
        folder
    };
    let out = files.path().join("out");
    let odd = quantize(&folder(42, 50), "int4", &out);
    let message = failure(&odd, 1);
    assert!(
        message.contains("42-50") && message.contains("in int4"),
        "{message}"
    );
    assert!(!out.exists());
    // There are eight projections; the one after the attention reads 6 numbers, and the one at the end of the MLP reads
    // 64.
    let some = quantize(&folder(44, 64), "int4", &out);
    assert!(some.status.success(), "{}", stderr(&some));
    let said = stdout(&some);
    assert!(
        said.ends_with("weights of projections: 1 in int4, 6 in int8, 1 in floats\n"),
        "{said}"
    );
}
