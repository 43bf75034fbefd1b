//! What `/v1/chat/completions` answers.

use std::fs;
use std::path::Path;

use datasets::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tests::gguf::pieces;

use crate::completions::terse;
use crate::http::Server;
use crate::support::{chat_folder, student_folder, teacher_folder};
use crate::{PROMPT, teacher, with};

fn chatty() -> (TempDir, Server) {
    let folder = chat_folder(&teacher_folder());
    let server = Server::start(folder.path(), &["--model-name", "tiny"]);
    (folder, server)
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

fn ask(content: &str) -> Value {
    json!({"messages": user(content), "max_tokens": 8, "temperature": 0})
}

/// The reply to a body that is as it should be.
fn answered(server: &Server, body: Value) -> Value {
    let response = server.chat(&body);
    assert_eq!(response.status, 200, "{body}: {}", response.body);
    response.json()
}

/// The ids of what the template writes.
fn ids(turns: &[(&str, &str)]) -> Vec<u32> {
    let tokenizer = Tokenizer::from_folder(teacher_folder()).unwrap();
    let turns = turns
        .iter()
        .map(|(role, content)| format!("{role}\n{content}\n"));
    let all = turns.chain(["assistant\n".to_owned()]);
    let all = all.flat_map(|turn| [vec![0], tokenizer.encode(&turn).unwrap()].concat());
    all.collect()
}

#[test]
fn a_turn_is_the_text_after_the_written_messages() {
    let (_folder, server) = chatty();
    for turns in [
        &[("user", PROMPT)][..],
        &[("system", "Be brief."), ("user", "Hello é🦀")],
        &[("user", "Hello"), ("assistant", "Hi."), ("user", "")],
    ] {
        let messages: Vec<Value> = turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect();
        let more = json!({"max_tokens": 12, "seed": 3, "temperature": 1, "top_p": 0.9, "n": 2});
        let text = server.complete(with(json!({"prompt": ids(turns)}), more.clone()));
        let turn = answered(&server, with(json!({ "messages": messages }), more));
        assert_eq!(turn["object"], "chat.completion");
        assert_eq!(turn["model"], "tiny");
        assert!(turn["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert_eq!(turn["usage"], text["usage"]);
        assert_eq!(turn["usage"]["prompt_tokens"], ids(turns).len());
        for i in 0..2 {
            let message = json!({"role": "assistant", "content": text["choices"][i]["text"],
                "refusal": null});
            let choice = json!({"index": i, "message": message, "logprobs": null,
                "finish_reason": "length"});
            assert_eq!(turn["choices"][i], choice);
        }
        assert_ne!(turn["choices"][0], turn["choices"][1]);
    }
}

#[test]
fn a_stream_is_the_turn_in_pieces() {
    let (_folder, server) = chatty();
    let body = json!({"messages": user(PROMPT), "max_tokens": 30, "seed": 5, "n": 2, "logprobs": true,
        "top_logprobs": 2, "stop": ["and", "."]});
    let whole = answered(&server, body.clone());
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut events = server.chat(with(body.clone(), options)).events();
    let usage = events.pop().unwrap();
    assert_eq!(
        (&usage["usage"], &usage["choices"]),
        (&whole["usage"], &json!([]))
    );
    let mut turns = vec![(Map::new(), Vec::new(), Value::Null); 2];
    for event in &events {
        assert_eq!(event["id"], usage["id"]);
        assert_eq!(event["object"], "chat.completion.chunk");
        assert!(event.get("usage").is_none());
        let [piece] = &event["choices"].as_array().unwrap()[..] else {
            panic!("one piece: {event}")
        };
        let (message, scores, finish) = &mut turns[piece["index"].as_u64().unwrap() as usize];
        assert!(finish.is_null(), "nothing follows the end");
        if message.is_empty() {
            assert_eq!(piece["delta"], json!({"role": "assistant", "content": ""}));
        }
        for (key, more) in piece["delta"].as_object().unwrap() {
            let so_far = message.get(key).and_then(Value::as_str).unwrap_or("");
            let all = so_far.to_owned() + more.as_str().unwrap();
            message.insert(key.clone(), all.into());
        }
        scores.extend(
            piece["logprobs"]["content"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
        *finish = piece["finish_reason"].clone();
        let ended = piece["finish_reason"].is_null() == piece["delta"].get("content").is_some();
        assert!(ended, "the end has no text: {piece}");
    }
    assert!(events.len() > 10);
    for (index, (message, scores, finish)) in turns.into_iter().enumerate() {
        let expected = &whole["choices"][index];
        assert_eq!(message["role"], expected["message"]["role"]);
        assert_eq!(message["content"], expected["message"]["content"]);
        assert_eq!(json!(scores), expected["logprobs"]["content"]);
        assert_eq!(finish, expected["finish_reason"]);
    }
    // Without the option there is no usage.
    let events = server.chat(with(body, json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event["choices"] != json!([])));
}

#[test]
fn scores_are_those_of_the_text() {
    let (_folder, server) = chatty();
    let turn = answered(
        &server,
        with(ask(PROMPT), json!({"logprobs": true, "top_logprobs": 2})),
    );
    let prompt = json!({"prompt": ids(&[("user", PROMPT)]), "max_tokens": 8, "temperature": 0,
        "logprobs": 2});
    let text = &server.complete(prompt)["choices"][0];
    let choice = &turn["choices"][0];
    let scores = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(scores.len(), 8);
    let mut bytes = Vec::new();
    for (i, score) in scores.iter().enumerate() {
        assert_eq!(score["token"], text["logprobs"]["tokens"][i]);
        assert_eq!(score["logprob"], text["logprobs"]["token_logprobs"][i]);
        let top = score["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // The text is greedy.
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"]),
            (&score["token"], &score["logprob"])
        );
        let of_token = score["bytes"].as_array().unwrap().iter();
        bytes.extend(of_token.map(|byte| byte.as_u64().unwrap() as u8));
    }
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), content);
    let none = answered(&server, with(ask(PROMPT), json!({"logprobs": true})));
    assert_eq!(
        none["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );
}

#[test]
fn a_turn_ends_before_a_stop_string() {
    let (_folder, server) = chatty();
    let whole = answered(&server, ask(PROMPT));
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let (before, stop) = text.split_at(text.len() / 2);
    let cut = answered(&server, with(ask(PROMPT), json!({ "stop": stop })));
    assert_eq!(cut["choices"][0]["message"]["content"], before);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
}

/// The token that ends a turn is counted, but its text and its score are not part of the turn.
#[test]
fn a_turn_ends_with_an_end_of_text() {
    let folder = chat_folder(terse().path());
    let server = Server::start(folder.path(), &[]);
    let body = with(ask(PROMPT), json!({"logprobs": true, "top_logprobs": 1}));
    let turn = answered(&server, body.clone());
    let choice = &turn["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    assert_eq!(choice["logprobs"]["content"], json!([]));
    assert_eq!(turn["usage"]["completion_tokens"], 1);
    let events = server.chat(with(body, json!({"stream": true}))).events();
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(
        (&last["delta"], &last["finish_reason"]),
        (&json!({}), &json!("stop"))
    );
}

#[test]
fn what_is_wrong_is_an_error_of_openai_s() {
    let (_folder, server) = chatty();
    for (body, param, part) in [
        (
            json!({"messages": user("refuse")}),
            "messages",
            "refuses these messages: This is refused.",
        ),
        (
            json!({"messages": user(&"word ".repeat(3000))}),
            "messages",
            "max_position_embeddings",
        ),
        (
            with(ask("Hi"), json!({"tools": [{}]})),
            "tools",
            "Unsupported parameter: 'tools'",
        ),
        (
            with(ask("Hi"), json!({"temperature": -1})),
            "temperature",
            "temperature is -1",
        ),
    ] {
        let response = server.chat(&body);
        assert_eq!(response.status, 400);
        assert!(response.error().contains(part), "{}", response.body);
        assert_eq!(response.json()["error"]["param"], param);
    }
    assert_eq!(server.chat(json!({"model": "other"})).status, 404);
    assert_eq!(server.chat("{").status, 400);
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    let counted = |code: u16| {
        let path = "path=\"/v1/chat/completions\"";
        server.metric(&format!(
            "infer_http_responses_total{{{path},code=\"{code}\"}}"
        ))
    };
    assert_eq!((counted(400), counted(404), counted(405)), (5.0, 1.0, 1.0));
}

#[test]
fn a_model_without_a_template_continues_and_does_not_chat() {
    let server = teacher();
    let response = server.chat(ask("Hi"));
    assert_eq!(response.status, 400);
    assert!(
        response.error().contains("this model has no chat template"),
        "{}",
        response.body
    );
    assert_eq!(response.json()["error"]["code"], "no_chat_template");
    // The page knows.
    let is_offered = |server: &Server| server.get("/").body.contains("<body data-chat>");
    assert!(!is_offered(&server) && is_offered(&chatty().1));
    // Nor does one whose template cannot be read.
    let folder = chat_folder(&teacher_folder());
    fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let server = Server::start(folder.path(), &[]);
    let response = server.chat(ask("Hi"));
    assert_eq!(response.status, 400);
    assert!(
        response
            .error()
            .contains("the chat template cannot be read: syntax error")
    );
    assert_eq!(server.text(crate::greedy(PROMPT)), crate::CONTINUATION);
}

#[test]
fn a_student_answers_too() {
    let student = student_folder(&[]);
    let folder = chat_folder(student.path());
    let server = Server::start(folder.path(), &[]);
    let body = with(
        ask("Hi"),
        json!({"seed": 7, "temperature": 1, "max_tokens": 20}),
    );
    let text = |body: Value| answered(&server, body)["choices"][0]["message"]["content"].clone();
    assert_eq!(text(body.clone()), text(body));
}

/// A tokenizer like Llama 2's over the teacher's vocabulary: pieces with a mark for the blank, single bytes, and
/// special tokens around them.
fn with_byte_fallback(folder: &Path) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(('a'..='z').map(String::from));
    tokens.push("\u{2581}".to_owned());
    let special = |(id, token): (usize, &str)| {
        json!({"id": id, "content": token, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    };
    let added: Vec<Value> = [(1, "<s>"), (2, "</s>")].map(special).into();
    // The rest of the model's vocabulary is written in letters that many bytes stand for.
    let rest = (tokens.len()..4096).map(|i| char::from_u32(0x4e00 + i as u32).unwrap().to_string());
    tokens.extend(rest);
    let vocab: Map<String, Value> = tokens.into_iter().zip((0..).map(Value::from)).collect();
    let fields = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        ] },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [],
        },
    });
    fs::write(folder.join("tokenizer.json"), fields.to_string()).unwrap();
    let template = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}<s>";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
}

/// Replies and streams contain whole characters and the same text, even if tokens are parts of characters.
#[test]
fn a_tokenizer_of_bytes_and_marks_chats_in_whole_characters() {
    let folder = chat_folder(&teacher_folder());
    with_byte_fallback(folder.path());
    // <s>, a mark and a letter, a mark and three bytes, a mark and six bytes, </s>, <s>.
    whole_characters(folder.path(), 1 + 2 + 4 + 7 + 2);
}

/// The same from inside a GGUF file, whose vocabulary has some more pieces.
#[test]
fn a_gguf_file_s_tokenizer_chats_in_whole_characters() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}<s>";
    let file = pieces().with("tokenizer.chat_template", template);
    fs::write(folder.path().join("m.gguf"), file.bytes()).unwrap();
    // <s>, a piece, a mark and three bytes, a mark and six bytes, </s>, <s>.
    whole_characters(folder.path(), 1 + 1 + 4 + 7 + 2);
    let server = Server::start(folder.path(), &[]);
    let echoed =
        json!({"prompt": "a 漢 é🦀", "max_tokens": 20, "temperature": 2, "seed": 1, "echo": true});
    let text = server.complete(echoed)["choices"][0]["text"].clone();
    assert!(text.as_str().unwrap().starts_with("a 漢 é🦀"), "{text}");
}

/// Replies of the model in `folder` to a prompt of so many tokens.
fn whole_characters(folder: &Path, prompt_tokens: usize) {
    let server = Server::start(folder, &[]);
    let mut broken = 0;
    for seed in 0..6 {
        let body = json!({"messages": user("a 漢 é🦀"), "max_tokens": 60, "seed": seed, "temperature": 2,
            "logprobs": true});
        let whole = answered(&server, body.clone());
        let choice = &whole["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap();
        let events = server.chat(with(body, json!({"stream": true}))).events();
        let pieces = events
            .iter()
            .map(|event| &event["choices"][0]["delta"]["content"]);
        let streamed: String = pieces.filter_map(Value::as_str).collect();
        assert_eq!(streamed, content);
        // What the bytes of all tokens are together.
        let scores = choice["logprobs"]["content"].as_array().unwrap();
        let bytes = scores
            .iter()
            .flat_map(|score| score["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), content);
        broken += usize::from(content.contains('\u{fffd}'));
        assert_eq!(whole["usage"]["prompt_tokens"], prompt_tokens);
    }
    assert!(broken > 0, "some bytes make no character");
}
