//! Panics of other crates on damaged files, as errors.
//!
//! The crates that read `tokenizer.json` and Parquet panic on some invalid files. Here such a panic does not end the
//! program: it becomes an error that names the file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread becomes an error.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Installs a panic hook, once in a process, that suppresses the message of a panic which this crate turns into an
/// error. For every other panic, the earlier hook is called.
///
/// Without the hook, the errors are the same, but the message of the panic is also printed on standard error. A library
/// should not set a hook by itself, so programs call this function at their start.
pub fn silence_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !CATCHING.get() {
                earlier(panic);
            }
        }));
    });
}

/// Runs `work` on this thread. If it panics, returns the message of the panic as an error.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CATCHING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    result.map_err(|panic| text(&*panic))
}

/// The first line of a panic's message.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next());
    line.unwrap_or("no reason given").to_owned()
}
