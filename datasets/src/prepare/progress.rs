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
    /// A bar at 0 of the size of `sources`, which are a group of files of this number, from 0, of so many.
    pub(super) fn new(name: &'a str, (number, of): (usize, usize), sources: &[SourceFile]) -> Self {
        let bytes = sources.iter().map(|file| file.bytes).sum();
        // The size of files that are fetched is not known.
        let template = match bytes {
            0 => "{prefix} {spinner} {msg}",
            _ => "{prefix} {wide_bar} {percent}%, {msg}, {eta} left",
        };
        let style = ProgressStyle::with_template(template);
        let of_all = match of {
            1 => String::new(),
            _ => format!(" {}/{of}", number + 1),
        };
        let bar = ProgressBar::new(bytes)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(format!("tokenising {name}{of_all}"))
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
            let all = match self.bar.length() {
                None | Some(0) => String::new(),
                Some(all) => format!(" of {}", HumanBytes(all)),
            };
            log::info!("{}: {read}{all} done, {tokens} tokens", self.name);
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
