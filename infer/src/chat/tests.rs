use std::fs;
use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use serde_json::{Value as Json, json};

use super::*;

/// Chats, and the texts that transformers writes for them; from `GOLDENS_DIR/chat`, if it is there.
fn recorded() -> PathBuf {
    let other = ::tests::goldens_dir().join("chat");
    if other.exists() {
        return other;
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat")
}

fn tokens() -> BTreeMap<String, String> {
    let tokens = [
        ("bos_token", "<s>"),
        ("eos_token", "<|endoftext|>"),
        ("pad_token", "<pad>"),
        ("unk_token", "<unk>"),
    ];
    tokens
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .into()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, tokens()).unwrap()
}

fn rendered(source: &str) -> Result<String, TemplateError> {
    template(source).render(&[Message::new("user", "Hello")], true)
}

fn message(json: &Json) -> Message {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Message {
        role: text("role").unwrap(),
        content: text("content").unwrap(),
        name: text("name"),
    }
}

#[test]
fn chats_are_those_of_transformers() {
    let folder = recorded();
    let cases = fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&cases).unwrap();
    let teacher = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    let tokenizer = Tokenizer::from_folder(teacher).unwrap();
    let (mut texts, mut refused, mut encoded) = (0, 0, 0);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = template(&fs::read_to_string(folder.join(name)).unwrap());
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(&messages, prompt);
        match case["error"].as_str() {
            Some(reason) => {
                refused += 1;
                let reason = reason.to_owned();
                assert_eq!(text, Err(TemplateError::Refused { reason }), "{case}");
            }
            None => {
                texts += 1;
                assert_eq!(
                    text.as_deref(),
                    Ok(case["text"].as_str().unwrap()),
                    "{case}"
                );
            }
        }
        if let Some(ids) = case["ids"].as_array() {
            encoded += 1;
            let ours = tokenizer.encode_chat(&text.unwrap()).unwrap();
            assert_eq!(json!(ours), json!(ids), "{case}");
        }
    }
    assert!(
        texts > 150 && refused > 2 && encoded > 30,
        "{texts}, {refused}, {encoded}"
    );
}

#[test]
fn the_time_is_now() {
    let year = rendered("{{ strftime_now('%Y') }}").unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2026, "{year}");
    let date = rendered("{{ strftime_now('%d %b %Y, 100%%') }}").unwrap();
    assert!(date.ends_with(&format!("{year}, 100%")), "{date}");
    let error = rendered("{{ strftime_now('%Q') }}").unwrap_err();
    assert!(error.to_string().contains("strftime_now"), "{error}");
}

/// Templates that were written on Windows have other line ends; what a template writes with `\\r` is kept.
#[test]
fn line_ends_are_those_of_jinja() {
    let source = "a\r\n{% if true %}\r\nb{% endif %}\rc{{ '\r\n' }}{{ '\\r' }}\r\n";
    assert_eq!(rendered(source).as_deref(), Ok("a\nbc\n\r"));
}

/// All as Jinja has it.
#[test]
fn a_line_end_after_a_backslash_is_none() {
    for (source, expected) in [
        ("{{ 'a\\\nb' }}", "ab"),
        ("{% set x = \"a\\\n\\\nb\" %}{{ x }}", "ab"),
        ("{{ 'a\\\\\nb' }}", "a\\\nb"),
        ("{{ \"'\" ~ 'a\\\nb' ~ '\\'\\\nc' }}", "'ab'c"),
        // Not in a text.
        ("'a\\\nb'", "'a\\\nb'"),
        ("{# 'a\\\nb #}'{{ 'c' }}", "'c"),
        (
            "{% raw %}{{ 'a\\\nb' }}{% endraw %}{{ 'a\\\nb' }}",
            "{{ 'a\\\nb' }}ab",
        ),
        ("{a\\\nb}{", "{a\\\nb}{"),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
    for broken in [
        "{{ 'a\\",
        "{% raw",
        "{% raw %}",
        "{#",
        "{% generation",
        "{{",
        "{%",
        "{",
    ] {
        let _ = ChatTemplate::new(broken, tokens());
    }
}

#[test]
fn marks_for_training_change_nothing() {
    for (marked, plain) in [
        ("{% generation %}a{% endgeneration %}", "a"),
        (
            "x\n  {%- generation -%}\n a \n{%- endgeneration %}\n y",
            "xa y",
        ),
        (
            "x\n  {% generation %}\n a \n  {% endgeneration %}\n y",
            "x\n a \n y",
        ),
        (
            "{%generation%}{{ 1 }}{%endgeneration%}{{ 'generation' }}",
            "1generation",
        ),
    ] {
        assert_eq!(rendered(marked).as_deref(), Ok(plain), "{marked}");
    }
}

/// A template always ends, whatever it does, and its error is one line.
#[test]
fn a_template_that_fails_says_why() {
    for (source, part) in [
        ("{{ nothing.at.all }}", "undefined value"),
        ("{{ 1 + 'a' }}", "invalid operation"),
        ("{{ messages[0].content.no_such() }}", "no_such"),
        ("a\nb\n{{ nothing() }}", "line 3"),
        ("{% include 'other' %}", "cannot be read"),
        ("{{ none | tojson(other=1) }}", "unknown keyword argument"),
        ("{{ nothing | tojson }}", "undefined"),
        (
            "{{ raise_exception('Not\n  so') }}",
            "refuses these messages: Not so",
        ),
        (
            "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}",
            "refuses",
        ),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "fails on these",
        ),
    ] {
        let made = ChatTemplate::new(source, tokens());
        let made = made.and_then(|made| made.render(&[Message::new("user", "Hi")], true));
        let said = made.unwrap_err().to_string();
        assert!(said.contains(part), "{source}: {said}");
        assert!(!said.contains('\n') && said.len() < 600, "{said}");
    }
    for source in [
        "{{",
        "{% if %}",
        "{% for x %}",
        "{% unknown %}",
        "{{ x | unknown }}{% endif %}",
    ] {
        let error = ChatTemplate::new(source, tokens()).unwrap_err();
        assert!(matches!(error, TemplateError::Syntax { .. }), "{source}");
    }
    let long = format!("{{{{ raise_exception('{}') }}}}", "é".repeat(10_000));
    assert!(rendered(&long).unwrap_err().to_string().len() < 600);
}

#[test]
fn a_template_cannot_work_for_ever() {
    let nested = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}";
    let doubled = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}\
                   {% endfor %}{{ ns.x | length }}";
    let shared = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                  {% endfor %}";
    for source in [
        nested.to_owned(),
        doubled.to_owned(),
        format!("{shared}{{{{ ns.x | tojson }}}}"),
        format!("{shared}{{{{ ns.x }}}}"),
        "{{ 'x' * 99999999999 }}".to_owned(),
    ] {
        let error = rendered(&source).unwrap_err();
        let is_bound = matches!(
            error,
            TemplateError::Endless | TemplateError::TooLong { .. }
        );
        assert!(is_bound, "{source}: {error}");
    }
    // Deeply nested values do not overflow the stack, neither when they are written nor when they are dropped.
    let list = format!("{}ns.x{}", "[".repeat(40), "]".repeat(40));
    for levels in [100, 2000, 5000, 6000, 7000, 8000, 99_999] {
        let deep = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in range({levels}) %}}{{% set ns.x = {list} %}}\
             {{% endfor %}}"
        );
        for end in [
            "",
            "{{ ns.x | tojson }}",
            "{{ ns.x | string | length }}",
            "{{ ns.x == [ns.x] }}",
        ] {
            let made = rendered(&format!("{deep}{end}"));
            assert!(
                made.is_ok() || levels > 2000 || end.contains("tojson"),
                "{levels}{end}: {made:?}"
            );
        }
    }
    let endless = "{% for i in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}";
    let error = rendered(endless).unwrap_err();
    assert!(matches!(error, TemplateError::TooLong { .. }), "{error}");
    // Long messages are no reason to fail.
    let whole =
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}";
    let messages = vec![Message::new("user", "x".repeat(1000)); 5000];
    let text = template(whole).render(&messages, true).unwrap();
    assert_eq!(text.len(), 5000 * 1007 - 1 + 1);
}

/// Many messages are not taken for a loop without end.
#[test]
fn work_grows_with_the_messages() {
    // Some sixty steps for each, as a long template does.
    let source = "{% for message in messages %}{% for i in range(16) %}{% endfor %}{{ message.role }}\
                  {% endfor %}";
    let messages = vec![Message::new("user", "Hi"); 25_000];
    let text = template(source).render(&messages, true).unwrap();
    assert_eq!(text.len(), 25_000 * "user".len());
    let endless = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}";
    let error = template(endless).render(&messages, true).unwrap_err();
    assert_eq!(error, TemplateError::Endless);
}

mod in_a_folder {
    use super::*;

    fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(folder: &Path) -> String {
        let template = ChatTemplate::in_folder(folder).unwrap();
        template
            .render(&[Message::new("user", "Hi")], true)
            .unwrap()
    }

    fn error(folder: &Path) -> String {
        ChatTemplate::in_folder(folder).unwrap_err().to_string()
    }

    #[test]
    fn a_template_is_found_where_transformers_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(error(folder).contains("no chat template here"));
        write(folder, "tokenizer_config.json", "{\"chat_template\": null}");
        assert!(error(folder).contains("no chat template here"));
        let one = json!({"chat_template": "of the config"});
        write(folder, "tokenizer_config.json", one.to_string());
        assert_eq!(text(folder), "of the config");
        let named = |names: [&str; 2]| {
            let entry = |name| json!({"name": name, "template": format!("called {name}")});
            json!({"chat_template": names.map(entry)}).to_string()
        };
        write(
            folder,
            "tokenizer_config.json",
            named(["tool_use", "default"]),
        );
        assert_eq!(text(folder), "called default");
        write(folder, "tokenizer_config.json", named(["tool_use", "rag"]));
        let said = error(folder);
        assert!(said.contains("rag, tool_use") && said.contains("tokenizer_config.json"));
        write(folder, "additional_chat_templates/rag.jinja", "for rag");
        assert!(error(folder).contains("chat templates rag, and none"));
        write(folder, "chat_template.jinja", "alone\n");
        assert_eq!(text(folder), "alone");
        write(folder, "additional_chat_templates/default.jinja", "default");
        assert_eq!(text(folder), "default");
    }

    #[test]
    fn special_tokens_are_those_of_the_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(
            folder,
            "chat_template.jinja",
            "{{ [bos_token, eos_token, pad_token, image_token, mark, add_bos_token] | join('|') }}",
        );
        let mut config = json!({
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": false},
            "pad_token": null,
            "image_token": "<image>",
            "add_bos_token": true,
            "extra_special_tokens": {"mark": "<mark>"},
        });
        write(folder, "tokenizer_config.json", config.to_string());
        assert_eq!(text(folder), "<s>|</s>||<image>|<mark>|");
        let map = json!({"bos_token": {"content": "<b>"}, "pad_token": "<pad>"});
        write(folder, "special_tokens_map.json", map.to_string());
        assert_eq!(text(folder), "<b>|</s>|<pad>|<image>|<mark>|");
        // In today's form all tokens are in one file.
        config["added_tokens_decoder"] = json!({});
        write(folder, "tokenizer_config.json", config.to_string());
        assert_eq!(text(folder), "<s>|</s>||<image>|<mark>|");
    }

    #[test]
    fn what_is_no_template_is_refused_by_the_file_s_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for wrong in [
            "",
            "{",
            "[]",
            "3",
            "{\"chat_template\": 3}",
            "{\"chat_template\": [3]}",
        ] {
            write(folder, "tokenizer_config.json", wrong);
            let said = error(folder);
            assert!(said.contains("tokenizer_config.json: "), "{wrong}: {said}");
        }
        write(
            folder,
            "tokenizer_config.json",
            json!({"chat_template": "{%"}).to_string(),
        );
        let said = error(folder);
        assert!(
            said.contains("tokenizer_config.json: the chat template cannot be read"),
            "{said}"
        );
        write(folder, "chat_template.jinja", b"\xff");
        assert!(error(folder).contains("chat_template.jinja: "));
        // A folder with checksums is held to them.
        write(folder, "chat_template.jinja", "before");
        model::manifest::add(folder, &["chat_template.jinja"]).unwrap();
        assert_eq!(text(folder), "before");
        write(folder, "chat_template.jinja", "after");
        assert!(error(folder).contains("chat_template.jinja"));
    }

    /// Any template ends, with a text or with a sentence.
    #[test]
    fn thousands_of_damaged_templates() {
        let folder = recorded();
        let sources = ["everything", "qwen2.5", "thoughts", "alternating"];
        let sources = sources.map(|name| fs::read(folder.join(format!("{name}.jinja"))).unwrap());
        let messages = [Message::new("system", "Be"), Message::new("user", "Hi")];
        let (mut made, mut failed) = (0, 0);
        ::tests::mutations::each(2000, |mutator| {
            let source = mutator.choose(&sources).clone();
            let source = mutator.bytes(&source);
            let source = String::from_utf8_lossy(&source);
            let template = ChatTemplate::new(&source, tokens());
            match template.and_then(|template| template.render(&messages, true)) {
                Ok(_) => made += 1,
                Err(error) => {
                    failed += 1;
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        });
        assert!(made > 100 && failed > 100, "{made}, {failed}");
    }

    /// Any files give a template or an error, and any template ends.
    #[test]
    fn thousands_of_damaged_files() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let source = fs::read_to_string(recorded().join("qwen2.5.jinja")).unwrap();
        let config = json!({"bos_token": "<s>", "chat_template": source}).to_string();
        let (mut read, mut refused) = (0, 0);
        ::tests::mutations::each(1000, |mutator| {
            let damaged = mutator.json(&config);
            write(folder, "tokenizer_config.json", damaged);
            let template = ChatTemplate::in_folder(folder);
            let messages = [Message::new("system", "Be"), Message::new("user", "Hi")];
            let text = template.map(|template| template.render(&messages, true));
            match text {
                Ok(Ok(_)) => read += 1,
                Ok(Err(error)) => assert!(!error.to_string().contains('\n'), "{error}"),
                Err(_) => refused += 1,
            }
        });
        assert!(read > 50 && refused > 50, "{read}, {refused}");
    }
}
