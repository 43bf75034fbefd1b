//! Where the model's text goes, and its speed beside it.

use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use console::{Term, measure_text_width, style};

/// How often the speed is shown anew.
const EVERY: Duration = Duration::from_millis(200);

/// Says something that is not part of the text.
pub(super) fn note(what: &str) {
    // Nobody to tell that there is nobody to tell.
    let _ = writeln!(stderr(), "{}", style(what).for_stderr().dim());
}

/// Standard output for the text of a turn; and, on a terminal, its speed behind the text, taken away
/// before more of it comes.
pub(super) struct Screen {
    /// The width of the terminal that the speed is shown on, if there is one.
    width: Option<usize>,
    /// Where the text is on it.
    column: usize,
    shown: bool,
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

    /// Shows more of the text at once.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.clear();
        let mut out = stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
        if let Some(width) = self.width.filter(|_| out.is_terminal()) {
            self.column = column(self.column, text, width);
        }
        Ok(())
    }

    /// Shows the speed if it is time to and there is room in the line: a terminal that had to scroll
    /// for it would not find back.
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

    /// Takes the speed away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\x1b[K");
        }
    }
}

/// Where a terminal's cursor stands after a text; a full line is left only with the next character.
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
