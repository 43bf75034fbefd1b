//! Lines on stderr, and what the crates underneath have to say there.
//!
//! Drivers log much that means nothing; they are not heard. Nor is CubeCL where it warns of each task that
//! panics on its device's thread: the first panic is kept, ends the run after that step, and is told then.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The crates that are heard, by the beginnings of their names, and from which level on.
const HEARD: [(&str, Level); 5] = [
    ("datasets", Level::Info),
    ("kernels", Level::Warn),
    ("model", Level::Warn),
    ("burn", Level::Warn),
    ("cube", Level::Warn),
];

/// Prints a line on stderr.
///
/// `eprintln!` panics where nobody reads it any more (`train 2>&1 | head`) or its disk is full, which
/// is no reason for a run to die. `writeln!` would not, but test harnesses cannot capture it.
pub fn say(line: impl Display) {
    let _ = catch_unwind(AssertUnwindSafe(|| eprintln!("{line}")));
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        HEARD
            .iter()
            .any(|(name, level)| metadata.target().starts_with(name) && metadata.level() <= *level)
    }

    fn log(&self, record: &Record) {
        let is_told_later = record.target().starts_with("cubecl_common")
            && record.args().to_string().starts_with("Task failed");
        if self.enabled(record.metadata()) && !is_told_later {
            match record.level() {
                Level::Error | Level::Warn => say(format_args!("warning: {}", record.args())),
                _ => say(record.args()),
            }
        }
    }

    fn flush(&self) {}
}

/// Begins to listen; whoever has begun before goes on.
pub fn listen() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
