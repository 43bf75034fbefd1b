//! Many sequences at the same time: each gets the same text as it gets alone, for every kind of model.

mod queue;
mod together;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use datasets::Tokenizer;
use infer::engine::{
    Answer, End, Engine, EngineOptions, EngineThread, Event, Finish, Request, Token, TokenScore,
};
use infer::precision::Precision;
use kernels::runtime::{Backend, Flex};
use model::CausalLm;
use model::manifest::MANIFEST;

use crate::support::{student_folder, teacher_folder};

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_folder(teacher_folder()).unwrap())
}

fn start(model: &Path, slots: usize, queue: usize) -> (Engine, EngineThread) {
    let options = EngineOptions {
        backend: Backend::Flex,
        precision: Precision::Auto,
        model: model.into(),
        tokenizer: tokenizer(),
        slots,
        queue,
    };
    Engine::start(options).unwrap()
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request::new(prompt, max_tokens)
}

/// Ids of tokens without meaning; a different sequence for every `i`.
fn prompt(i: usize, length: usize) -> Vec<u32> {
    (0..length)
        .map(|k| ((i * 7919 + k * 104_729) % 4095 + 1) as u32)
        .collect()
}

/// All of an answer.
#[derive(Debug, Default, PartialEq)]
struct Whole {
    prompt: Vec<Option<TokenScore>>,
    text: String,
    tokens: Vec<Token>,
    end: Option<End>,
}

impl Whole {
    /// The answer's next part; `false` if it was the last.
    fn take(&mut self, answer: &mut Answer) -> bool {
        match answer.blocking_next().expect("the engine is at work") {
            Event::Prompt(scores) => self.prompt.extend(scores.iter().cloned()),
            Event::Text(piece) => {
                self.text.push_str(&piece.text);
                self.tokens.extend(piece.tokens);
            }
            Event::End(end) => self.end = Some(end.unwrap()),
        }
        self.end.is_none()
    }

    fn of(mut answer: Answer) -> Self {
        let mut whole = Self::default();
        while whole.take(&mut answer) {}
        whole
    }
}

fn submit(engine: &Engine, request: Request) -> Answer {
    engine.submit(vec![request]).unwrap().remove(0)
}

fn load(folder: &Path) -> CausalLm<Flex> {
    model::load_any(folder, &Device::<Flex>::default())
        .unwrap()
        .1
}

/// A text ends with any of the tokens that the folder names.
#[test]
fn a_model_may_end_a_text_in_several_ways() {
    let student = student_folder(&[]);
    // The changes below are deliberate.
    std::fs::remove_file(student.path().join(MANIFEST)).unwrap();
    let made = |folder: &Path| {
        let (engine, _) = start(folder, 1, 1);
        let whole = Whole::of(submit(&engine, request(&prompt(1, 20), 12)));
        let ids: Vec<u32> = whole.tokens.iter().map(|token| token.id).collect();
        (ids, whole.text, whole.end.unwrap())
    };
    let (ids, text, _) = made(student.path());
    assert_eq!(ids.len(), 12);
    let last = (1..12)
        .rev()
        .find(|&i| !ids[..i].contains(&ids[i]))
        .unwrap();
    // `config.json` of an exported student, and `generation_config.json`, which takes precedence.
    let config = student.path().join("config.json");
    let whole = std::fs::read_to_string(&config).unwrap();
    let named = whole.replacen('{', &format!("{{\"eos_token_id\": {},", ids[last]), 1);
    let generation = student.path().join("generation_config.json");
    let several = format!("{{\"eos_token_id\": [4095, {}]}}", ids[last]);
    for (path, text_of) in [(&config, named), (&generation, several)] {
        std::fs::write(path, text_of).unwrap();
        let (ended, shorter, end) = made(student.path());
        assert_eq!(ended, ids[..=last]);
        assert!(text.starts_with(&shorter));
        assert_eq!((end.finish, end.tokens), (Finish::EndOfText, last + 1));
        std::fs::write(&config, &whole).unwrap();
    }
    std::fs::write(&generation, "{\"eos_token_id\": 4096}").unwrap();
    let options = EngineOptions {
        backend: Backend::Flex,
        precision: Precision::Auto,
        model: student.path().into(),
        tokenizer: tokenizer(),
        slots: 1,
        queue: 1,
    };
    let refused = Engine::start(options).err().unwrap().to_string();
    assert!(refused.contains("generation_config.json"), "{refused}");
}

#[test]
fn a_prompt_s_scores_are_the_model_s() {
    let model = load(&teacher_folder());
    let prompt = prompt(3, 300);
    let (engine, _) = start(&teacher_folder(), 1, 1);
    let whole = Whole::of(submit(
        &engine,
        Request {
            alternatives: Some(2),
            score_prompt: true,
            ..request(&prompt, 0)
        },
    ));
    let device = Device::<Flex>::default();
    let ids: Vec<i32> = prompt.iter().map(|&id| id as i32).collect();
    let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [1, 300]), &device);
    let logits = model.prefill_all(ids, &mut model.new_state(1, &device));
    let expected = burn::tensor::activation::log_softmax(logits, 2);
    let expected = expected.into_data().into_vec::<f32>().unwrap();
    assert_eq!(whole.prompt.len(), 300);
    assert_eq!(whole.prompt[0], None);
    assert_eq!((whole.text.as_str(), whole.end.unwrap().tokens), ("", 0));
    for (i, score) in whole.prompt.iter().enumerate().skip(1) {
        let score = score.as_ref().unwrap();
        let row = &expected[(i - 1) * 4096..][..4096];
        let expected = row[prompt[i] as usize];
        assert!((score.log_probability - f64::from(expected)).abs() < 1e-3);
        let [(first, best), (_, second)] = score.likeliest[..] else {
            panic!("two were asked for")
        };
        assert!(best >= second && best >= score.log_probability);
        assert!((best - f64::from(row[first as usize])).abs() < 1e-3);
    }
}
