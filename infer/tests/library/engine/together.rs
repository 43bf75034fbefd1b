//! Requests that run together: each gets the same result as alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use burn::tensor::{Device, Int, Tensor, TensorData};
use infer::engine::{Event, Finish, Request};
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;

use super::{Whole, load, prompt, request, start, submit};
use crate::support::{student_folder, teacher_folder};

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

/// Every request alone, one after the other.
fn alone(model: &Path) -> Vec<Whole> {
    let (engine, _) = start(model, 1, 1);
    let each = requests().into_iter();
    each.map(|request| Whole::of(submit(&engine, request)))
        .collect()
}

/// All requests together, more than fit into one tile. Each joins when the one before it has begun to answer; some
/// other requests among them are dropped early.
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
            // The scores are compared too, to the bit.
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

/// The rows of a batch are independent to the bit, and a row gives the logits of a sequence alone.
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
    // All texts share one list of the prompt's scores.
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
