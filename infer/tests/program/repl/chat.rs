//! `infer repl --chat`: conversations.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use datasets::Tokenizer;
use infer::chat::{ChatTemplate, Message};
use infer::end_tokens::EndTokens;
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;

use super::{LINE, file, repl, session, stderr, stdout};
use crate::support::{CHAT_TEMPLATE, chat_folder, student_folder, teacher_folder};

/// The model's greedy answer to a conversation that it reads as a whole, and the number of its tokens.
fn answer(folder: &Path, messages: &[Message], max_tokens: usize) -> (String, usize) {
    let device = Device::<Flex>::default();
    let (config, model) = model::load_any::<Flex>(folder, &device).unwrap();
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let text = ChatTemplate::in_folder(folder)
        .unwrap()
        .render(messages, true);
    let ids = tokenizer.encode_chat(&text.unwrap()).unwrap();
    let options = GenerateOptions {
        sampling: SamplingSettings::default(),
        max_tokens,
        vocab_size: tokenizer.vocab_size(),
        end_tokens: EndTokens::of(folder, &tokenizer, model.vocab_size()).unwrap(),
        end_of_text: tokenizer.end_of_text(),
        max_positions: config.max_positions(),
    };
    let made = Generation::new(&model, &device, &ids, options).unwrap();
    let made: Vec<u32> = made.map(|token| token.unwrap()).collect();
    (tokenizer.decode(&made).unwrap(), ids.len())
}

/// The numbers of new and of all tokens that a session reports for each turn.
fn new_tokens(said: &str) -> Vec<[usize; 2]> {
    let lines = said.lines().filter_map(|line| {
        let (_, numbers) = line.rsplit_once("; ")?;
        let numbers = numbers.strip_suffix(" tokens of the conversation were new")?;
        let (new, all) = numbers.split_once(" of ")?;
        Some([new, all].map(|number| number.parse().unwrap()))
    });
    lines.collect()
}

/// A conversation gives the same answers as if it were read as a whole, whatever part of it was read before.
#[test]
fn a_chat_is_read_once() {
    let few = ["--chat", "--max-tokens", "9"];
    let [student, hybrid] = [&[][..], &[1]].map(student_folder);
    for model in [&teacher_folder(), student.path(), hybrid.path()] {
        let folder = chat_folder(model);
        let folder = folder.path();
        let (_saved, path) = file();
        let save = format!("/save {}", path.display());
        let output = session(folder, &few, &["Hello", "", LINE, "and é🦀?", &save]);
        let mut messages = Vec::new();
        let mut shown = String::new();
        let mut lengths = Vec::new();
        for line in ["Hello", LINE, "and é🦀?"] {
            messages.push(Message::new("user", line));
            let (text, length) = answer(folder, &messages, 9);
            shown += &format!("{}\n", text.strip_suffix('\n').unwrap_or(&text));
            messages.push(Message::new("assistant", text));
            lengths.push(length);
        }
        assert_eq!(stdout(&output), shown);
        let said = stderr(&output);
        assert!(said.contains("type a message"), "{said}");
        let new = new_tokens(&said);
        let all: Vec<usize> = new.iter().map(|[_, all]| *all).collect();
        assert_eq!(all, lengths, "{said}");
        // At least what was asked before is not read again.
        assert_eq!(new[0][0], lengths[0]);
        assert!(new[1][0] <= lengths[1] - lengths[0] && new[2][0] <= lengths[2] - lengths[1]);
        let template = ChatTemplate::in_folder(folder).unwrap();
        let text = template.render(&messages, false).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
}

#[test]
fn a_chat_obeys_commands() {
    let folder = chat_folder(&teacher_folder());
    let folder = folder.path();
    let few = ["--chat", "--max-tokens", "6"];
    let text = |lines: &[&str]| {
        let (_saved, path) = file();
        let save = format!("/save {}", path.display());
        let output = session(folder, &few, &[lines, &[&save]].concat());
        (fs::read_to_string(path).unwrap(), stderr(&output))
    };
    let (plain, _) = text(&["Hello"]);
    assert!(plain.starts_with("<|endoftext|>user\nHello\n<|endoftext|>assistant\n"));
    assert_eq!(text(&["something", "else", "/reset", "Hello"]).0, plain);
    let (told, said) = text(&["/system Be brief.", "Hello"]);
    assert!(
        told.starts_with("<|endoftext|>system\nBe brief.\n<|endoftext|>user\nHello"),
        "{told}"
    );
    assert!(said.contains("system Be brief."));
    // The system message outlives the turns, and can be taken back.
    assert_eq!(text(&["/system Be brief.", "x", "/reset", "Hello"]).0, told);
    assert_eq!(text(&["/system Be brief.", "/system", "Hello"]).0, plain);
    // A refused message is not part of the conversation.
    let (kept, said) = text(&["refuse", "Hello"]);
    assert_eq!(kept, plain);
    assert!(
        said.contains("refuses these messages: This is refused."),
        "{said}"
    );
    let long = "a ".repeat(2100);
    let (kept, said) = text(&[&long, "Hello"]);
    assert_eq!(kept, plain);
    assert!(said.contains("positions for 2048; /reset"), "{said}");
    assert!(text(&["/help"]).1.contains("/system TEXT"));
    assert_eq!(text(&[]).0, "");
    // Without --chat there is none of it.
    let said = stderr(&session(folder, &[], &["/system x", "/help"]));
    assert!(
        said.contains("/system is for chats") && !said.contains("/system TEXT"),
        "{said}"
    );
}

/// A template may change what it wrote before; then the conversation is read anew from there.
#[test]
fn a_chat_whose_beginning_changes_is_read_anew() {
    let folder = chat_folder(&teacher_folder());
    let folder = folder.path();
    let counted = format!("{{{{- messages | length }}}}{CHAT_TEMPLATE}");
    fs::write(folder.join("chat_template.jinja"), counted).unwrap();
    let output = session(folder, &["--chat", "--max-tokens", "5"], &["Hello", LINE]);
    let mut messages = vec![Message::new("user", "Hello")];
    let (first, _) = answer(folder, &messages, 5);
    messages.extend([
        Message::new("assistant", &first),
        Message::new("user", LINE),
    ]);
    let (second, all) = answer(folder, &messages, 5);
    let line = |text: &str| format!("{}\n", text.strip_suffix('\n').unwrap_or(text));
    assert_eq!(stdout(&output), line(&first) + &line(&second));
    assert_eq!(new_tokens(&stderr(&output))[1], [all, all]);
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let refused = |folder: &Path| {
        let output = repl(folder, &["--chat"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    assert!(refused(&teacher_folder()).contains("no chat template here"));
    let folder = chat_folder(&teacher_folder());
    fs::write(folder.path().join("chat_template.jinja"), "{{ x").unwrap();
    let said = refused(folder.path());
    assert!(
        said.contains("chat_template.jinja: the chat template cannot be read"),
        "{said}"
    );
}
