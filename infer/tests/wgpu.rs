//! The program writes the same text on wgpu, where the device chooses tokens and is a step ahead of the host, as on the
//! CPU.
//!
//! ```text
//! cargo test --release -p infer --features wgpu --test wgpu
//! ```
//!
//! Any adapter can be used, even one that computes on the CPU. A machine without an adapter skips this test with a
//! message, unless the environment variable `CI` is set.
#![cfg(all(feature = "wgpu", feature = "flex"))]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use datasets::Tokenizer;
use infer::SamplingSettings;
use infer::engine::{Engine, EngineOptions, Event, Request};
use infer::precision::Precision;
use kernels::runtime::Backend;
use support::{chat_folder, student_folder, teacher_folder};

/// Why a text ended.
const ENDED: &str = "the model ended the text";
const PROMPT: &str = "It was the best of times, it was the worst of times";

fn infer(command: &str, model: &Path, backend: &str) -> Command {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args([command, "--dtype", "f32", "--backend", backend, "--model"]);
    infer.arg(model);
    infer
}

fn generate(model: &Path, backend: &str) -> Output {
    let mut infer = infer("generate", model, backend);
    infer.args(["--max-tokens", "24", PROMPT]).output().unwrap()
}

/// Asserts that both backends write the same text, and returns the notes of the program on wgpu.
fn on_both(run: impl Fn(&str) -> Output) -> String {
    let [wgpu, flex] = ["wgpu", "flex"].map(run);
    let said = String::from_utf8(wgpu.stderr).unwrap();
    assert!(wgpu.status.success(), "{said}");
    assert!(flex.status.success() && !flex.stdout.is_empty());
    let [wgpu, flex] = [wgpu.stdout, flex.stdout].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(wgpu, flex);
    said
}

/// In these texts the logits of the two likeliest tokens never differ by as little as rounding changes them.
#[test]
fn the_likeliest_text_is_the_cpu_s() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            let (student, hybrid) = (student_folder(&[]), student_folder(&[1]));
            for model in [student.path(), hybrid.path(), &teacher_folder()] {
                on_both(|backend| generate(model, backend));
            }
        },
    );
}

/// The device repeats steps of attention, until there are no more angles or the cache is full: past token 256.
#[test]
fn a_text_goes_on_where_steps_are_recorded_anew() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            let prompt = [PROMPT; 16].join(". ");
            let hybrid = student_folder(&[1]);
            for model in [hybrid.path(), &teacher_folder()] {
                on_both(|backend| {
                    let mut infer = infer("generate", model, backend);
                    infer.args(["--max-tokens", "40", &prompt]);
                    infer.output().unwrap()
                });
            }
        },
    );
}

/// Sampling needs a random number and the tokens seen so far for each token, before the token before it is known.
#[test]
fn a_drawn_text_is_the_cpu_s() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            on_both(|backend| {
                let mut infer = infer("generate", &teacher_folder(), backend);
                infer.args(["--temperature", "0.8", "--top-p", "0.9", "--seed", "3"]);
                infer.args(["--repetition-penalty", "1.3", "--max-tokens", "40", PROMPT]);
                infer.output().unwrap()
            });
        },
    );
}

/// Three turns of a session.
fn session(model: &Path, chat: &[&str], backend: &str) -> Output {
    let mut repl = infer("repl", model, backend);
    repl.args(chat).args(["--max-tokens", "20"]);
    repl.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = repl.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = child.stdin.take().unwrap();
    let text = format!("{PROMPT}\nHe said\nAnd then\n");
    lines.write_all(text.as_bytes()).unwrap();
    drop(lines);
    child.wait_with_output().unwrap()
}

/// The full stop and " of" end a text here, so turns end while the device is a step ahead.
#[test]
fn a_session_goes_on_where_the_model_has_ended() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            let folder = chat_folder(&teacher_folder());
            let model = folder.path();
            let ends = [".", " of"].map(|end| {
                let tokenizer = Tokenizer::from_folder(model).unwrap();
                tokenizer.encode(end).unwrap()[0]
            });
            let settings = format!(r#"{{"eos_token_id": {ends:?}}}"#);
            fs::write(model.join("generation_config.json"), settings).unwrap();
            for chat in [&[][..], &["--chat"]] {
                let said = on_both(|backend| session(model, chat, backend));
                assert!(said.contains(ENDED), "{said}");
            }
        },
    );
}

/// The texts of some requests that differ in when they begin and end.
fn served(model: &Path, backend: Backend) -> Vec<String> {
    let tokenizer = Arc::new(Tokenizer::from_folder(teacher_folder()).unwrap());
    let prompt = tokenizer.encode(PROMPT).unwrap();
    let options = EngineOptions {
        backend,
        precision: Precision::F32,
        model: model.into(),
        tokenizer,
        slots: 5,
        queue: 32,
    };
    let (engine, thread) = Engine::start(options).unwrap();
    let requests = (0..9).map(|i| {
        let mut request = Request::new(prompt[..2 + i % 9].to_vec(), [6, 2, 9, 1][i % 4]);
        if i % 3 == 1 {
            request.sampling = SamplingSettings {
                temperature: 0.9,
                repetition_penalty: 1.2,
                seed: i as u64,
                ..SamplingSettings::default()
            };
        }
        request.alternatives = (i % 5 == 4).then_some(2);
        if i % 4 == 2 {
            request.stop = vec![" the".into(), "er".into()];
        }
        request
    });
    let answers = engine.submit(requests.collect()).unwrap();
    let texts = answers.into_iter().map(|mut answer| {
        let mut text = String::new();
        loop {
            match answer.blocking_next() {
                Some(Event::Text(piece)) => text += &piece.text,
                Some(Event::End(end)) => return format!("{text} {:?}", end.unwrap()),
                Some(Event::Prompt(_)) => {}
                None => panic!("an answer has no end"),
            }
        }
    });
    let texts = texts.collect();
    drop((engine, thread));
    texts
}

#[test]
fn the_server_s_texts_are_the_cpu_s() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            let student = student_folder(&[]);
            for model in [student.path(), &teacher_folder()] {
                assert_eq!(served(model, Backend::Wgpu), served(model, Backend::Flex));
            }
        },
    );
}
