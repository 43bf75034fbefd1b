//! Shows warnings of the crates that this crate uses, such as skipped files of a folder, on standard error.

use std::fmt::Display;
use std::io::{Write, stderr};

use log::{LevelFilter, Log, Metadata, Record};

/// The project's own crates. Drivers and other dependencies log much that means nothing to a user.
const SHOWN: [&str; 3] = ["datasets", "kernels", "model"];

/// Writes a line to standard error. If standard error is closed or full, the error is ignored.
pub fn say(line: impl Display) {
    let _ = stderr().write_all(format!("{line}\n").as_bytes());
}

struct Warnings;

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().split("::").next();
        own.is_some_and(|own| SHOWN.contains(&own))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(format_args!("warning: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Makes this the logger of the process.
pub fn listen() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
