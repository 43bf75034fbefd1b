//! The state of a thread while it records a decoding step (see [`decode::replay`](crate::decode::replay)).
//!
//! On CUDA a recording runs the step twice, on wgpu once. The first run, the *rehearsal*, computes the step; its
//! outputs get new memory and are noted in order. The second run, the *capture*, gets the same outputs in the same
//! order, so that it reserves no memory. It computes nothing: the driver only notes each launch. All memory that the
//! launches read or write stays reserved as long as the recording exists.

use std::cell::RefCell;

use cubecl::server::{Binding, Handle};

thread_local! {
    static TAKE: RefCell<Option<Take>> = const { RefCell::new(None) };
}

/// What is known of a step that is being recorded.
#[derive(Default)]
pub(crate) struct Take {
    /// The outputs with their bytes, in the order in which they are asked for.
    pub outputs: Vec<(usize, Handle)>,
    /// The memory of all arrays of all launches.
    pub touched: Vec<Binding>,
    /// The launches.
    pub launches: usize,
    /// The buffer on the device that holds how many steps were taken since this one.
    pub counter: Option<Handle>,
    /// Why the step cannot be recorded, if it cannot.
    pub obstacle: Option<&'static str>,
    /// The next output to be handed out, in a capture.
    next: Option<usize>,
}

/// The memory of an output of `bytes` bytes, if the thread records; by `reserve` in a rehearsal.
///
/// # Panics
/// If a capture asks for other outputs than its rehearsal: the driver would note a reservation as part of the step.
pub(crate) fn output(bytes: usize, reserve: impl FnOnce() -> Handle) -> Option<Handle> {
    let noted = TAKE.with_borrow_mut(|take| {
        let take = take.as_mut()?;
        let Some(next) = take.next else {
            return Some(None);
        };
        let noted = take.outputs.get(next).filter(|(noted, _)| *noted == bytes);
        let (_, output) = noted.expect("a step asks for the same outputs each time");
        take.next = Some(next + 1);
        Some(Some(output.clone()))
    })?;
    // Outside the borrow, because `reserve` may launch a kernel.
    let handle = noted.unwrap_or_else(reserve);
    TAKE.with_borrow_mut(|take| {
        if let Some(Take {
            outputs,
            next: None,
            ..
        }) = take
        {
            outputs.push((bytes, handle.clone()));
        }
    });
    Some(handle)
}

/// Notes that a launch reads or writes this, if the thread records.
pub(crate) fn touches(array: &Handle) {
    TAKE.with_borrow_mut(|take| {
        if let Some(take) = take {
            take.touched.push(array.clone().binding());
        }
    });
}

/// Notes a launch, if the thread records.
pub(crate) fn launches() {
    TAKE.with_borrow_mut(|take| {
        if let Some(take) = take {
            take.launches += 1;
        }
    });
}

/// Notes, if the thread records, that a tensor which the step writes in place was copied. A repeated step would write
/// to the copy, but the next step would read the original.
pub(crate) fn copies() {
    TAKE.with_borrow_mut(|take| {
        if let Some(take) = take {
            take.obstacle = Some("it copies what it should write in place");
        }
    });
}

/// The buffer on the device with the number of steps since the one that the thread records; `None` if the thread does
/// not record.
pub(crate) fn counter() -> Option<Handle> {
    TAKE.with_borrow(|take| take.as_ref()?.counter.clone())
}

/// The result of `step`, and what it reserves, touches and launches. `counter` is 0.
pub(crate) fn rehearse<T>(counter: Handle, step: impl FnOnce() -> T) -> (T, Take) {
    let take = Take {
        counter: Some(counter),
        ..Take::default()
    };
    run(take, step)
}

/// The result of `step`, whose outputs are those of `rehearsal`, and what it touches and launches.
#[cfg(feature = "cuda")]
pub(crate) fn capture<T>(rehearsal: Take, step: impl FnOnce() -> T) -> (T, Take) {
    let take = Take {
        outputs: rehearsal.outputs,
        counter: rehearsal.counter,
        next: Some(0),
        ..Take::default()
    };
    run(take, step)
}

fn run<T>(take: Take, step: impl FnOnce() -> T) -> (T, Take) {
    /// Ends the recording even if the step panics.
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            TAKE.set(None);
        }
    }
    TAKE.set(Some(take));
    let _ends = Ends;
    let result = step();
    (result, TAKE.take().unwrap_or_default())
}
