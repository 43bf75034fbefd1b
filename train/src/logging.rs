//! Lines on stderr, and which log messages of dependencies are shown there.
//!
//! Drivers log many messages that mean nothing to the user; these are not shown. CubeCL's warnings about each task that
//! panics on its device's thread are not shown either: the first panic is kept, ends the run after that step, and is
//! shown then.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The crates whose messages are shown, by the beginnings of their names, and from which level on.
const SHOWN: [(&str, Level); 5] = [
    ("datasets", Level::Info),
    ("kernels", Level::Warn),
    ("model", Level::Warn),
    ("burn", Level::Warn),
    ("cube", Level::Warn),
];

/// Prints a line on stderr.
///
/// `eprintln!` panics if the reader has closed the pipe (`train 2>&1 | head`) or the disk is full, which
/// is no reason to end a run. `writeln!` would not, but test harnesses cannot capture it.
pub fn say(line: impl Display) {
    let _ = catch_unwind(AssertUnwindSafe(|| eprintln!("{line}")));
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        SHOWN
            .iter()
            .any(|(name, level)| metadata.target().starts_with(name) && metadata.level() <= *level)
    }

    fn log(&self, record: &Record) {
        let is_shown_later = record.target().starts_with("cubecl_common")
            && record.args().to_string().starts_with("Task failed");
        if self.enabled(record.metadata()) && !is_shown_later {
            match record.level() {
                Level::Error | Level::Warn => say(format_args!("warning: {}", record.args())),
                _ => say(record.args()),
            }
        }
    }

    fn flush(&self) {}
}

/// Makes this the logger of the process, unless it has one.
pub fn listen() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
