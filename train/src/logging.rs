//! What the crates underneath have to say, on stderr.
//!
//! Above all the warnings of CubeCL: a kernel that panics on its device's thread is only logged
//! there, and what it should have computed is then garbage. Drivers log much that means nothing; they
//! are not heard.

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The crates that are heard, by the beginnings of their names, and from which level on.
const HEARD: [(&str, Level); 5] = [
    ("datasets", Level::Info),
    ("kernels", Level::Warn),
    ("model", Level::Warn),
    ("burn", Level::Warn),
    ("cube", Level::Warn),
];

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        HEARD
            .iter()
            .any(|(name, level)| metadata.target().starts_with(name) && metadata.level() <= *level)
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            match record.level() {
                Level::Error | Level::Warn => eprintln!("warning: {}", record.args()),
                _ => eprintln!("{}", record.args()),
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
