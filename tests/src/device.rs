//! Tests that need a device which not every machine has.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;

/// Runs `test` if `probe`, which is called once in a process, finds a device. Otherwise prints one line
/// that says which test was skipped and why.
///
/// # Panics
/// If there is no device and the environment variable `CI` is set: there one is installed, and that it
/// does not start is a failure.
pub fn with_device<E: Display>(probe: impl FnOnce() -> Result<(), E>, test: impl FnOnce()) {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| probe().err().map(|error| error.to_string()));
    let Some(reason) = missing else {
        return test();
    };
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    report_skipped(reason.lines().next().unwrap_or_default());
}

/// Prints one line that says that the test of this thread was skipped, and why.
pub fn report_skipped(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Not by eprintln!, whose output the test harness captures.
    let _ = writeln!(std::io::stderr(), "{name} skipped: {reason}");
}
