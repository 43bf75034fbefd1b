//! What `/v1/completions` answers.

use std::fs;
use std::thread;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};
use datasets::Tokenizer;
use kernels::runtime::Flex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::gguf::pieces;

use crate::http::Server;
use crate::support::{copy_tokenizer, student_folder, teacher_folder};
use crate::{CONTINUATION, PROMPT, PROMPT_IDS, greedy, teacher, with};

#[test]
fn a_prompt_comes_in_each_of_its_forms() {
    let server = teacher();
    for prompt in [
        json!(PROMPT),
        json!([PROMPT]),
        json!(PROMPT_IDS),
        json!([PROMPT_IDS]),
    ] {
        let reply = server.complete(greedy(prompt));
        assert_eq!(reply["object"], "text_completion");
        assert_eq!(reply["model"], "phi-tiny");
        assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
        let expected = json!([{"text": CONTINUATION, "index": 0, "logprobs": null,
            "finish_reason": "length"}]);
        assert_eq!(reply["choices"], expected);
        let usage = json!({"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14});
        assert_eq!(reply["usage"], usage);
    }
    let two = with(greedy(json!([PROMPT, "Once"])), json!({"n": 2}));
    let reply = server.complete(two);
    let choices = reply["choices"].as_array().unwrap();
    let texts: Vec<&str> = choices
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts[..2], [CONTINUATION; 2]);
    assert_eq!(texts[2], texts[3]);
    assert_ne!(texts[2], CONTINUATION);
    assert_eq!(choices[3]["index"], 3);
    let once = server.complete(greedy("Once"))["usage"]["prompt_tokens"].as_u64();
    assert_eq!(
        reply["usage"]["prompt_tokens"].as_u64(),
        Some(6 + once.unwrap())
    );
    assert_eq!(reply["usage"]["completion_tokens"], 32);
}

#[test]
fn a_stream_is_the_text_in_pieces() {
    let server = teacher();
    let body = json!({"prompt": [PROMPT, "Once"], "max_tokens": 30, "seed": 5, "n": 2, "echo": true,
        "logprobs": 2, "stop": ["and", "."]});
    let whole = server.complete(body.clone());
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut events = server.post(with(body.clone(), options)).events();
    let usage = events.pop().unwrap();
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(usage["choices"], json!([]));
    let mut choices = vec![json!({"text": "", "finish_reason": null}); 4];
    for event in &events {
        assert_eq!(event["id"], usage["id"]);
        assert_eq!(event["object"], "text_completion");
        assert!(event.get("usage").is_none());
        let [piece] = &event["choices"].as_array().unwrap()[..] else {
            panic!("one piece: {event}")
        };
        let choice = &mut choices[piece["index"].as_u64().unwrap() as usize];
        assert!(choice["finish_reason"].is_null(), "nothing follows the end");
        choice["finish_reason"] = piece["finish_reason"].clone();
        let text = choice["text"].as_str().unwrap().to_owned();
        choice["text"] = (text + piece["text"].as_str().unwrap()).into();
        if let Some(logprobs) = piece["logprobs"].as_object() {
            for (key, more) in logprobs {
                let so_far = choice["logprobs"][key].as_array().cloned();
                let mut so_far = so_far.unwrap_or_default();
                so_far.extend(more.as_array().unwrap().clone());
                choice["logprobs"][key] = so_far.into();
            }
        }
    }
    assert!(events.len() > 10);
    for (index, choice) in choices.iter().enumerate() {
        let expected = &whole["choices"][index];
        for key in ["text", "finish_reason", "logprobs"] {
            assert_eq!(choice[key], expected[key], "{key} of {index}");
        }
    }
    // Without the option there is no usage.
    let events = server.post(with(body, json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event["choices"] != json!([])));
}

/// What lm-eval asks for, against the model itself.
#[test]
fn a_prompt_s_logprobs_are_the_model_s() {
    let server = teacher();
    let body = json!({"prompt": PROMPT_IDS, "max_tokens": 1, "temperature": 0, "echo": true,
        "logprobs": 1, "seed": 1234});
    let with_a_token = server.complete(body.clone())["choices"][0].clone();
    let without = server.complete(with(body.clone(), json!({"max_tokens": 0})));
    assert_eq!(without["choices"][0]["text"], PROMPT);
    assert_eq!(without["usage"]["completion_tokens"], 0);

    let device = Device::<Flex>::default();
    let (_, model) = model::load_any::<Flex>(teacher_folder(), &device).unwrap();
    let ids = Tensor::<Flex, 2, Int>::from_ints([PROMPT_IDS.map(|id| id as i32)], &device);
    let logits = model.prefill_all(ids, &mut model.new_state(1, &device));
    let expected = log_softmax(logits, 2)
        .into_data()
        .into_vec::<f32>()
        .unwrap();
    let tokens = [
        ["It", " was", " the", " best", " of", " times"].as_slice(),
        &[" the"],
    ]
    .concat();
    let lengths = [(&with_a_token, 7), (&without["choices"][0], 6)];
    for (choice, n) in lengths {
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"], json!(tokens[..n]));
        assert_eq!(
            logprobs["text_offset"],
            json!([0, 2, 6, 10, 15, 18, 24][..n])
        );
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        for i in 1..n {
            let id = PROMPT_IDS.get(i).copied().unwrap_or(260) as usize;
            let row = &expected[(i - 1) * 4096..][..4096];
            let logprob = logprobs["token_logprobs"][i].as_f64().unwrap();
            assert!((logprob - f64::from(row[id])).abs() < 1e-4);
            let top = logprobs["top_logprobs"][i].as_object().unwrap();
            assert_eq!(top[tokens[i]], logprob);
            let best = top
                .values()
                .map(|value| value.as_f64().unwrap())
                .fold(f64::MIN, f64::max);
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            assert!((best - f64::from(largest)).abs() < 1e-4);
        }
    }
    // The prompt without its scores.
    let plain = with(body, json!({"logprobs": null}));
    assert_eq!(server.text(plain), format!("{PROMPT} the"));
}

/// With SentencePiece's pieces and single bytes as tokens, the echo is the prompt, and the text after it is the same
/// with the echo, without it, and in a stream, in whole characters.
#[test]
fn a_tokenizer_of_pieces_and_bytes_echoes_the_prompt() {
    const PROMPT: &str = "a 漢 é🦀";
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf"), pieces().bytes()).unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut broken = 0;
    for seed in 0..6 {
        let body = json!({"prompt": PROMPT, "max_tokens": 30, "temperature": 2, "seed": seed});
        let after = server.text(body.clone());
        let echo = with(body, json!({"echo": true, "logprobs": 1}));
        let reply = server.complete(echo.clone());
        let choice = &reply["choices"][0];
        let text = choice["text"].as_str().unwrap();
        assert_eq!(text, format!("{PROMPT}{after}"));
        // <s>, a piece, a mark and three bytes, a mark and six bytes.
        assert_eq!(reply["usage"]["prompt_tokens"], 1 + 1 + 4 + 7);

        // Each token where its text begins, that of a part of a character where the character does.
        let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
        let offsets: Vec<u64> = offsets.iter().map(|at| at.as_u64().unwrap()).collect();
        assert_eq!(offsets[..13], [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 5]);
        assert!(offsets.is_sorted());
        assert!(*offsets.last().unwrap() <= text.chars().count() as u64);

        let events = server.post(with(echo, json!({"stream": true}))).events();
        let sent = events.iter().map(|event| &event["choices"][0]["text"]);
        let streamed: String = sent.filter_map(Value::as_str).collect();
        assert_eq!(streamed, text);
        broken += usize::from(after.contains('\u{fffd}'));
    }
    assert!(broken > 0, "some bytes make no character");
}

/// A prompt given as ids can end inside a character.
#[test]
fn a_prompt_may_end_inside_a_character() {
    let server = teacher();
    let tokenizer = Tokenizer::from_folder(teacher_folder()).unwrap();
    let ids = tokenizer.encode("a 🦀").unwrap();
    let broken = &ids[..ids.len() - 1];
    let body = with(
        greedy(json!(broken)),
        json!({"echo": true, "max_tokens": 1}),
    );
    for logprobs in [Value::Null, json!(1)] {
        let body = with(body.clone(), json!({"logprobs": logprobs}));
        // Without a token, the incomplete character is shown as a replacement character.
        let unread = with(body.clone(), json!({"max_tokens": 0}));
        assert_eq!(server.text(unread), "a \u{fffd}");
        // The test cannot choose the last byte; the text is that of all ids, whichever the model makes.
        let choice = server.complete(with(body, json!({"logprobs": 1})))["choices"][0].clone();
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        let name = tokens.last().unwrap().as_str().unwrap();
        let made = (0..tokenizer.vocab_size() as u32).find(|&id| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            match std::str::from_utf8(&bytes) {
                Ok(text) => text == name,
                Err(_) => {
                    let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                    name == format!("bytes:{}", escaped.collect::<String>())
                }
            }
        });
        let all = [broken, &[made.expect("a token with this name")]].concat();
        assert_eq!(choice["text"], tokenizer.decode(&all).unwrap());
        // All the parts of the character begin where it does.
        let offsets = &choice["logprobs"]["text_offset"].as_array().unwrap();
        assert_eq!(offsets[broken.len() - 1], 2);
    }
}

/// A prompt of more ids than a text may be long; each id is a byte that continues no character.
#[test]
fn a_long_prompt_that_is_no_text() {
    let student = student_folder(&[]);
    let server = Server::start(student.path(), &[]);
    let tokenizer = Tokenizer::from_folder(teacher_folder()).unwrap();
    let is_part = |id: &u32| {
        tokenizer
            .token_bytes(*id)
            .is_some_and(|bytes| bytes == [0x80])
    };
    let part = (0..4096).find(is_part).unwrap();
    let body = json!({"prompt": vec![part; 3000], "max_tokens": 0, "echo": true, "logprobs": 0});
    let reply = server.complete(body);
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "\u{fffd}".repeat(3000));
    let offsets: Vec<usize> = (0..3000).collect();
    assert_eq!(choice["logprobs"]["text_offset"], json!(offsets));
    // With so many scores for each, the reply would be too large.
    let more = json!({"prompt": vec![part; 3000], "max_tokens": 0, "echo": true, "logprobs": 20,
        "n": 64});
    let refused = server.post(more);
    assert_eq!(refused.status, 400);
    assert!(refused.error().contains("192000 tokens"));
}

/// A teacher that ends every text at once.
pub fn terse() -> TempDir {
    let device = Device::<Flex>::default();
    let (config, mut model) = model::load_any::<Flex>(teacher_folder(), &device).unwrap();
    let head = model.lm_head.as_mut().expect("a head with its own weight");
    let open = |bias: Tensor<Flex, 1>| bias.slice_fill(0..1, 1000.0);
    head.bias = head.bias.take().map(|parameter| parameter.map(open));
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &model, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// The token that ends the text is among the scores, since lm-eval drops the last score as that of the token made.
#[test]
fn an_end_of_text_is_a_token_and_no_text() {
    let folder = terse();
    let server = Server::start(folder.path(), &[]);
    let reply = server.complete(with(greedy(PROMPT), json!({"logprobs": 1, "echo": true})));
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(PROMPT), &json!("stop"))
    );
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"].as_array().unwrap()[5..],
        [" times", "<|endoftext|>"]
    );
    assert_eq!(logprobs["text_offset"][6], PROMPT.len());
    assert_eq!(logprobs["token_logprobs"][6], 0.0);
    assert_eq!(reply["usage"]["completion_tokens"], 1);
    assert_eq!(server.text(greedy(PROMPT)), "");
}

#[test]
fn a_stop_string_is_where_the_text_ends() {
    let server = teacher();
    for (stop, text) in [
        (json!("year"), " the past "),
        (json!(["import", "e past y"]), " th"),
        (json!([", and t", "never"]), " the past year"),
    ] {
        let reply = server.complete(with(greedy(PROMPT), json!({"stop": stop})));
        assert_eq!(reply["choices"][0]["text"], text);
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    }
    // A text that is stopped at once has a list of scores all the same.
    let at_once = json!({"stop": " the", "logprobs": 1});
    let reply = server.complete(with(greedy(PROMPT), at_once));
    assert_eq!(reply["choices"][0]["text"], "");
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"], json!([]));
    assert_eq!(
        server.text(with(greedy(PROMPT), json!({"stop": "never"}))),
        CONTINUATION
    );
}

#[test]
fn a_seed_gives_the_same_text_under_load() {
    let student = student_folder(&[]);
    let server = Server::start(student.path(), &["--model-name", "student"]);
    let body = |seed: usize| {
        let prompt = &PROMPT[..1 + seed % 20];
        json!({"model": "student", "prompt": prompt, "max_tokens": 40, "seed": seed, "top_p": 0.9})
    };
    let alone: Vec<String> = (0..12).map(|seed| server.text(body(seed))).collect();
    assert_ne!(alone[0], server.text(with(body(0), json!({"seed": 99}))));
    let server = &server;
    thread::scope(|scope| {
        let at_once = |seed| scope.spawn(move || server.text(body(seed)));
        let texts: Vec<_> = (0..12).rev().map(at_once).collect();
        for (text, expected) in texts.into_iter().rev().zip(&alone) {
            assert_eq!(text.join().unwrap(), *expected);
        }
    });
    let several = with(body(3), json!({"n": 3}));
    let reply = server.complete(several);
    assert_eq!(reply["choices"][0]["text"], alone[3]);
    let second = with(body(3), json!({"seed": 4}));
    assert_eq!(reply["choices"][1]["text"], server.text(second));
}

#[test]
fn a_prompt_at_the_end_of_the_positions_still_has_a_next_token() {
    let server = teacher();
    let full = json!({"prompt": vec![260; 2048], "max_tokens": 9, "temperature": 0});
    let reply = server.complete(full);
    assert_eq!(reply["usage"]["completion_tokens"], 1);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}
