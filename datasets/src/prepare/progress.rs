//! How far the tokenising of a corpus is.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::shards::Manifest;
use crate::source::SourceFile;

/// The time between two lines of the log, if there is no terminal for a bar.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A progress bar over the bytes of the source files or, without a terminal, lines in the log.
pub(super) struct Progress<'a> {
    name: &'a str,
    bar: ProgressBar,
    begun: Instant,
    logged: Instant,
}

impl<'a> Progress<'a> {
    /// A bar at 0 of the size of `sources`.
    pub(super) fn new(name: &'a str, sources: &[SourceFile]) -> Self {
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {percent}%, {msg}, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(sources.iter().map(|file| file.bytes).sum())
            .with_style(style)
            .with_prefix(format!("tokenising {name}"))
            .with_message("0 tokens");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            name,
            bar,
            begun: Instant::now(),
            logged: Instant::now(),
        }
    }

    /// Shows that `bytes_read` of the sources have become `tokens`.
    pub(super) fn report(&mut self, bytes_read: u64, tokens: u64) {
        self.bar.set_position(bytes_read);
        let tokens = HumanCount(tokens);
        self.bar.set_message(format!("{tokens} tokens"));
        if self.bar.is_hidden() && self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            let read = HumanBytes(bytes_read);
            let all = HumanBytes(self.bar.length().unwrap_or_default());
            log::info!("{}: {read} of {all} done, {tokens} tokens", self.name);
        }
    }

    /// Ends the bar and logs the counts of `manifest`.
    pub(super) fn finish(self, manifest: &Manifest) {
        self.bar.finish();
        log::info!(
            "{}: {} documents, {} tokens in {:.1} s",
            self.name,
            HumanCount(manifest.documents),
            HumanCount(manifest.tokens),
            self.begun.elapsed().as_secs_f64()
        );
    }
}
