//! Requests that wait: which are refused, which comes next, and how a deadline ends one.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use infer::GenerateError;
use infer::engine::{End, Finish, Request, SubmitError};

use super::{Whole, prompt, request, start, submit};
use crate::support::{student_folder, teacher_folder};

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
    // The request has begun, so it is no longer in the queue.
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

/// A deadline also ends a request that waits while another one holds the only slot.
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
    // The moment at which all texts end also ends those without a deadline.
    let waiting = submit(&engine, request(&[5], 9));
    engine.end_at(Instant::now());
    let mut whole = Whole::default();
    while whole.take(&mut running) {}
    assert_eq!(whole.end.unwrap().finish, Finish::TimeUp);
    let end = Whole::of(waiting).end.unwrap();
    assert_eq!((end.finish, end.tokens), (Finish::TimeUp, 0));
}

/// A request with many texts gets all slots while it is alone. A single text of another owner waits only until one of
/// these texts ends.
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
    // The single text also goes before the other owner's texts in the queue.
    many.truncate(1);
    let waiting = engine.submit(vec![request(&[5], 300); 50]).unwrap();
    let other = Whole::of(submit(&engine, request(&[7, 8], 20)));
    assert_eq!(other.tokens.len(), 20);
    drop(waiting);
}
