//! The model's text on standard output and, on a terminal, its speed beside it.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use console::{Term, measure_text_width, style};

use crate::output::{self, TerminalError, print};

/// How often the speed is updated.
const EVERY: Duration = Duration::from_millis(200);

/// Writes a line that is not part of the text, to standard error.
pub(super) fn note(what: &str) {
    output::note(style(what).for_stderr().dim());
}

/// Shows the text of a turn on standard output. On a terminal the speed stands after the text, and is
/// erased before more text comes.
pub(super) struct Screen {
    /// The width of the terminal that the speed is shown on, if there is one.
    width: Option<usize>,
    /// The column of the terminal in which the text ends.
    column: usize,
    /// Whether the speed is on the screen.
    shown: bool,
    /// When the speed may be updated.
    next: Instant,
}

impl Screen {
    pub(super) fn new() -> Self {
        let term = Term::stderr();
        Self {
            width: term.is_term().then(|| term.size().1.into()),
            column: 0,
            shown: false,
            next: Instant::now() + EVERY,
        }
    }

    /// Shows more of the text at once. `false` if standard output was closed.
    pub(super) fn text(&mut self, text: &str) -> Result<bool, TerminalError> {
        self.clear();
        let mut out = stdout().lock();
        let is_open = print(&mut out, text)?;
        if let Some(width) = self.width.filter(|_| out.is_terminal()) {
            self.column = column(self.column, text, width);
        }
        Ok(is_open)
    }

    /// Shows the speed, in tokens per second, if it is time to and there is room in the line: a terminal
    /// that has to scroll loses the saved place of the cursor.
    pub(super) fn speed(&mut self, tokens_per_second: f64) {
        let Some(width) = self.width.filter(|_| Instant::now() >= self.next) else {
            return;
        };
        self.clear();
        let speed = format!("  {tokens_per_second:.0} tokens/s");
        if self.column + speed.len() < width {
            // Between saving and restoring the place of the cursor.
            let speed = style(speed).for_stderr().dim();
            let _ = write!(stderr(), "\x1b7{speed}\x1b8");
            self.shown = true;
        }
        self.next = Instant::now() + EVERY;
    }

    /// Erases the speed.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\x1b[K");
        }
    }
}

/// The column of a terminal's cursor after a text that began in column `before`. After a full line the
/// cursor stays in the last column until the next character.
fn column(before: usize, text: &str, width: usize) -> usize {
    let (start, last) = match text.rsplit_once('\n') {
        Some((_, last)) => (0, last),
        None => (before, text),
    };
    match start + measure_text_width(last) + 8 * last.matches('\t').count() {
        0 => 0,
        n => (n - 1) % width.max(1) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_as_a_terminal_does() {
        assert_eq!(column(0, "", 10), 0);
        assert_eq!(column(3, "abc", 10), 6);
        assert_eq!(column(3, "abc\nd", 10), 1);
        assert_eq!(column(3, "abc\n", 10), 0);
        assert_eq!(column(8, "ab", 10), 10);
        assert_eq!(column(8, "abc", 10), 1);
        assert_eq!(column(0, "日本", 10), 4);
        assert_eq!(column(0, "a", 0), 1);
    }
}
