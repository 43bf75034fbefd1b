//! Many sequences at once: each gets the same text as alone, for every kind of model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use datasets::Tokenizer;
use infer::engine::{
    Answer, End, Engine, EngineOptions, EngineThread, Event, Finish, Request, SubmitError, Token,
    TokenScore,
};
use infer::precision::Precision;
use infer::{GenerateError, GenerateOptions, Generation, SamplingSettings};
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

/// Some tokens of English, a different run of them for every `i`.
fn prompt(i: usize, length: usize) -> Vec<u32> {
    (0..length)
        .map(|k| ((i * 7919 + k * 104_729) % 4095 + 1) as u32)
        .collect()
}

/// Requests that differ in everything a request can differ in.
fn requests() -> Vec<Request> {
    let lengths = [6, 1, 300, 17, 2, 513, 40, 256, 5, 90, 3, 700];
    let tokens = [20, 33, 9, 26, 1, 14, 40, 11, 0, 23, 31, 8];
    let each = lengths.into_iter().zip(tokens).enumerate();
    each.map(|(i, (length, max_tokens))| {
        let mut request = request(&prompt(i, length), max_tokens);
        request.sampling.seed = i as u64;
        request.sampling.temperature = [1.0, 0.0, 0.7][i % 3];
        request.sampling.top_p = [1.0, 0.9][i % 2];
        request.sampling.repetition_penalty = [1.0, 1.3, 1.0, 1.1, 1.0][i % 5];
        request.alternatives = [None, Some(0), Some(3)][i % 3];
        request.score_prompt = i % 6 == 5;
        if i % 4 == 0 {
            request.stop = vec![" the".into(), "er".into(), "i".into()];
        }
        request
    })
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

/// Every request alone, one after the other.
fn alone(model: &Path) -> Vec<Whole> {
    let (engine, _) = start(model, 1, 1);
    let each = requests().into_iter();
    each.map(|request| Whole::of(submit(&engine, request)))
        .collect()
}

/// All of them at once in more than a tile, each joining when the one before it has begun to answer,
/// with others among them that give up.
fn together(model: &Path) {
    let expected = alone(model);
    assert!(
        expected
            .iter()
            .any(|whole| whole.end.unwrap().finish == Finish::StopString)
    );
    let (engine, _) = start(model, 12, 64);
    for round in 0..2 {
        let mut requests: Vec<_> = requests().into_iter().enumerate().collect();
        if round == 1 {
            requests.reverse();
        }
        let mut answers = Vec::new();
        for (i, request) in requests {
            let given_up = Request {
                max_tokens: 1000,
                ..request.clone()
            };
            let mut given_up = submit(&engine, given_up);
            let mut answer = submit(&engine, request);
            let mut whole = Whole::default();
            let continues = whole.take(&mut answer);
            let _ = given_up.blocking_next();
            answers.push((i, whole, continues.then_some(answer)));
        }
        for (i, mut whole, answer) in answers {
            if let Some(mut answer) = answer {
                while whole.take(&mut answer) {}
            }
            // To the bit of every score.
            assert_eq!(whole, expected[i], "request {i} in round {round}");
        }
    }
}

#[test]
fn a_student_gives_each_what_it_gets_alone() {
    together(student_folder(&[]).path());
}

#[test]
fn a_hybrid_gives_each_what_it_gets_alone() {
    together(student_folder(&[1]).path());
}

#[test]
fn the_teacher_gives_each_what_it_gets_alone() {
    together(&teacher_folder());
}

fn load(folder: &Path) -> CausalLm<Flex> {
    model::load_any(folder, &Device::<Flex>::default())
        .unwrap()
        .1
}

/// The same tokens as a [`Generation`], whose steps have one row.
#[test]
fn greedy_tokens_are_those_of_a_generation() {
    let (student, hybrid) = (student_folder(&[]), student_folder(&[0, 2]));
    for folder in [student.path(), hybrid.path(), &teacher_folder()] {
        let model = load(folder);
        let (engine, _) = start(folder, 4, 8);
        let prompts: Vec<_> = (0..4).map(|i| prompt(i, 3 + 150 * i)).collect();
        let requests = prompts.iter().map(|prompt| request(prompt, 40)).collect();
        let answers = engine.submit(requests).unwrap();
        for (prompt, answer) in prompts.iter().zip(answers) {
            let whole = Whole::of(answer);
            let options = GenerateOptions {
                sampling: SamplingSettings::default(),
                max_tokens: 40,
                vocab_size: 4096,
                end_tokens: [].into(),
                end_of_text: None,
                max_positions: None,
            };
            let device = Device::<Flex>::default();
            let generation = Generation::new(&model, &device, prompt, options).unwrap();
            let ids: Vec<u32> = generation.map(Result::unwrap).collect();
            let made: Vec<u32> = whole.tokens.iter().map(|token| token.id).collect();
            assert_eq!(made, ids[..made.len()]);
            assert!(made.len() == 40 || whole.end.unwrap().finish == Finish::EndOfText);
        }
    }
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
    // In an exported student's own file, and in the one that wins over it.
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

/// Rows of a batch are apart to the bit, and a row gives the logits of a sequence alone.
#[test]
fn the_rows_of_a_batch_are_apart() {
    let device = Device::<Flex>::default();
    let (student, hybrid) = (student_folder(&[]), student_folder(&[3]));
    for folder in [student.path(), hybrid.path(), &teacher_folder()] {
        let model = load(folder);
        let read = |i: usize| {
            let ids: Vec<i32> = prompt(i, 4 + 9 * i).iter().map(|&id| id as i32).collect();
            let ids = TensorData::new(ids.clone(), [1, ids.len()]);
            let mut state = model.new_state(1, &device);
            model.prefill(Tensor::<Flex, 2, Int>::from_data(ids, &device), &mut state);
            state
        };
        let values = |logits: Tensor<Flex, 2>| logits.into_data().into_vec::<f32>().unwrap();
        let mut full = model.new_batch(4, &device);
        let mut sparse = model.new_batch(4, &device);
        (0..4).for_each(|i| full.put(i, read(i)));
        sparse.put(1, read(2));
        let mut state = read(2);
        for step in 0..5 {
            // A sequence leaves and another joins.
            if step == 2 {
                full.free(1);
            }
            if step == 3 {
                full.put(1, read(3));
            }
            let ids = |ids: [i32; 4]| Tensor::<Flex, 1, Int>::from_ints(ids, &device);
            let id = 100 + step;
            let of_full = values(model.step_batch(ids([7, 8, id, 9]), &mut full));
            let of_sparse = values(model.step_batch(ids([0, id, 0, 0]), &mut sparse));
            let one = Tensor::<Flex, 1, Int>::from_ints([id], &device);
            let expected = values(model.step(one, &mut state));
            let (row, other) = (&of_full[2 * 4096..][..4096], &of_sparse[4096..][..4096]);
            assert!(row == other, "step {step}: rows are not apart");
            for (value, expected) in row.iter().zip(expected) {
                let tolerance = 1e-4 * expected.abs().max(1.0);
                assert!((value - expected).abs() < tolerance, "{value} {expected}");
            }
        }
        assert!(full.bytes() > sparse.bytes() || folder == student.path());
    }
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

#[test]
fn what_cannot_be_done_is_refused() {
    let (engine, thread) = start(&teacher_folder(), 1, 3);
    let refused = |request: Request| engine.submit(vec![request]).unwrap_err();
    assert!(matches!(
        refused(request(&[], 4)),
        SubmitError::Invalid(GenerateError::EmptyPrompt)
    ));
    assert!(matches!(
        refused(request(&[1, 4096], 4)),
        SubmitError::Invalid(GenerateError::UnknownToken { token: 4096, .. })
    ));
    let positions = engine.facts().max_positions.unwrap();
    assert!(matches!(
        refused(request(&prompt(0, positions + 1), 4)),
        SubmitError::Invalid(GenerateError::PromptTooLong { .. })
    ));
    let mut without_meaning = request(&[1], 4);
    without_meaning.sampling.top_p = 2.0;
    assert!(matches!(
        refused(without_meaning),
        SubmitError::Invalid(GenerateError::Sampling(_))
    ));
    assert!(matches!(
        engine.submit(vec![request(&[1], 4); 4]).unwrap_err(),
        SubmitError::TooMany {
            requests: 4,
            queue: 3
        }
    ));
    // None of the refused ones has taken a place.
    assert_eq!(engine.waiting(), 0);
    let last = Whole::of(submit(&engine, request(&prompt(0, positions), 100)));
    let end = End {
        finish: Finish::ContextFull,
        tokens: 1,
    };
    assert!(last.end == Some(end) || last.end.unwrap().finish == Finish::EndOfText);
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn a_full_queue_takes_no_more_and_a_dropped_answer_makes_room() {
    let student = student_folder(&[]);
    let (engine, _) = start(student.path(), 1, 1);
    let endless = request(&[5], usize::MAX);
    let mut running = submit(&engine, endless.clone());
    // It has begun, so it is not in the queue.
    assert!(running.blocking_next().is_some());
    let waiting = submit(&engine, endless.clone());
    let full = engine.submit(vec![endless.clone()]).unwrap_err();
    assert!(matches!(full, SubmitError::Full), "{full}");
    drop(running);
    let mut waiting = waiting;
    assert!(waiting.blocking_next().is_some());
    assert_eq!(engine.waiting(), 0);
    drop(waiting);
    let started = Instant::now();
    while engine.gauges().sequences.load(Relaxed) > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "it still runs"
        );
        thread::sleep(Duration::from_millis(5));
    }
    let made = engine.gauges().tokens.load(Relaxed);
    let whole = Whole::of(submit(&engine, request(&[5], 3)));
    assert_eq!(whole.tokens.len(), 3);
    assert_eq!(engine.gauges().tokens.load(Relaxed), made + 3);
}

#[test]
fn a_dropped_answer_frees_its_place_in_the_queue() {
    let student = student_folder(&[]);
    let (engine, _) = start(student.path(), 1, 2);
    let mut running = submit(&engine, request(&[5], usize::MAX));
    assert!(running.blocking_next().is_some());
    for _ in 0..5 {
        let waiting = engine.submit(vec![request(&[5], 3); 2]).unwrap();
        assert_eq!(engine.waiting(), 2);
        let full = engine.submit(vec![request(&[5], 3)]).unwrap_err();
        assert!(matches!(full, SubmitError::Full), "{full}");
        // The one in front, or both.
        drop(waiting);
        while engine.waiting() > 0 {
            assert!(running.blocking_next().is_some());
        }
    }
    let mut waiting = engine.submit(vec![request(&[5], 3); 2]).unwrap();
    waiting.remove(0);
    while engine.waiting() > 1 {
        assert!(running.blocking_next().is_some());
    }
    drop(running);
    assert_eq!(Whole::of(waiting.remove(0)).tokens.len(), 3);
}

#[test]
fn a_deadline_ends_a_text_where_it_is() {
    let student = student_folder(&[]);
    let (engine, _) = start(student.path(), 2, 2);
    let limited = Request {
        deadline: Some(Instant::now() + Duration::from_millis(300)),
        ..request(&[5], usize::MAX)
    };
    let whole = Whole::of(submit(&engine, limited));
    assert_eq!(whole.end.unwrap().finish, Finish::TimeUp);
    let late = Request {
        deadline: Some(Instant::now()),
        ..request(&[5], 9)
    };
    let end = Whole::of(submit(&engine, late)).end.unwrap();
    assert_eq!((end.finish, end.tokens), (Finish::TimeUp, 0));
}

/// Also while another request holds the only slot.
#[test]
fn a_deadline_ends_a_request_that_waits() {
    let student = student_folder(&[]);
    let (engine, _) = start(student.path(), 1, 2);
    let mut running = submit(&engine, request(&[5], usize::MAX));
    assert!(running.blocking_next().is_some());
    let late = Request {
        deadline: Some(Instant::now() + Duration::from_millis(100)),
        ..request(&[5], 9)
    };
    let end = Whole::of(submit(&engine, late)).end.unwrap();
    assert_eq!((end.finish, end.tokens), (Finish::TimeUp, 0));
    // The place is free a moment after the answer.
    while engine.waiting() > 0 {
        assert!(running.blocking_next().is_some());
    }
    // And the end of all texts ends those that have no deadline.
    let waiting = submit(&engine, request(&[5], 9));
    engine.end_at(Instant::now());
    let mut whole = Whole::default();
    while whole.take(&mut running) {}
    assert_eq!(whole.end.unwrap().finish, Finish::TimeUp);
    let end = Whole::of(waiting).end.unwrap();
    assert_eq!((end.finish, end.tokens), (Finish::TimeUp, 0));
}

/// A request with many texts has all slots while it is alone, and another's single text waits for one of them
/// only.
#[test]
fn requests_take_turns() {
    let student = student_folder(&[]);
    let (engine, _) = start(student.path(), 4, 100);
    let endless = request(&[5], usize::MAX);
    let mut many = vec![endless; 50];
    // One of the first ends.
    many[2].max_tokens = 300;
    let mut many = engine.submit(many).unwrap();
    for running in &mut many[..4] {
        assert!(running.blocking_next().is_some());
    }
    let other = Whole::of(submit(&engine, request(&[7, 8], 20)));
    assert_eq!(other.tokens.len(), 20);
    // Those in front of the others' texts in the queue, too.
    many.truncate(1);
    let waiting = engine.submit(vec![request(&[5], 300); 50]).unwrap();
    let other = Whole::of(submit(&engine, request(&[7, 8], 20)));
    assert_eq!(other.tokens.len(), 20);
    drop(waiting);
}

/// Several texts of one prompt read it once, and are the same as alone.
#[test]
fn texts_of_one_prompt_share_its_reading() {
    let hybrid = student_folder(&[1]);
    let (engine, _) = start(hybrid.path(), 8, 8);
    let shared = request(&prompt(3, 300), 12);
    let texts: Vec<Request> = (0..5_usize)
        .map(|seed| {
            let mut request = shared.clone();
            request.sampling.seed = seed as u64;
            request.sampling.temperature = 1.0;
            // One that ends with its first token, and one with its prompt.
            request.max_tokens = [12, 1, 0, 12, 5][seed];
            request.alternatives = Some(1);
            request.score_prompt = true;
            request
        })
        .collect();
    let read = || engine.gauges().prompt_tokens.load(Relaxed);
    let alone = texts
        .iter()
        .map(|request| Whole::of(submit(&engine, request.clone())));
    let alone: Vec<Whole> = alone.collect();
    let before = read();
    assert_eq!(before, 5 * 300);
    let mut answers = engine.submit(texts.clone()).unwrap();
    // Their prompt's scores are the same ones.
    let first: Vec<_> = answers
        .iter_mut()
        .map(|answer| match answer.blocking_next() {
            Some(Event::Prompt(scores)) => scores,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(first.iter().all(|scores| Arc::ptr_eq(scores, &first[0])));
    answers
        .into_iter()
        .for_each(|answer| drop(Whole::of(answer)));
    assert_eq!(read() - before, 300);
    let answers = engine.submit(texts).unwrap();
    let together: Vec<Whole> = answers.into_iter().map(Whole::of).collect();
    assert_eq!(read() - before, 600);
    assert_eq!(together, alone);
    assert_eq!(together[0].prompt.len(), 300);
    assert!(together[0].text != together[3].text);
}
