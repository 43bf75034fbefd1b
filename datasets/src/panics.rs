//! Panics of other crates on damaged files, as errors.
//!
//! The crates that read `tokenizer.json` and Parquet panic on some files that are not what they should
//! be. Such a panic ends nothing here: it becomes an error that names the file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread becomes an error.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Installs a panic hook, once in a process, that prints nothing of a panic which this crate turns into
/// an error. The earlier hook is called for every other panic.
///
/// Without it the errors are the same, and the message of the panic is on standard error too. A library
/// sets no hook unasked, so this is for programs to call at their start.
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

/// Does `work` on this thread. If it panics, the panic's message.
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
