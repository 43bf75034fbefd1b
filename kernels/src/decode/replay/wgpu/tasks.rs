//! The launches and copies that CubeCL's server on wgpu keeps back, which no method of it returns. But it can be printed.

use std::fmt::{self, Write};

/// Counts them in what a server is printed as:
/// `StreamPool { streams: [Some(Stream { tasks: [Execute(resources=3, ..), Write(bytes=8)], .. }), None, ..], ..`.
#[derive(Default)]
pub(super) struct Tasks {
    /// Whether the streams are next.
    begin: bool,
    /// Of each stream, up to the one that is being printed.
    counts: Vec<usize>,
    /// Brackets that are open within the list of streams.
    depth: usize,
    /// Whether a string is being printed, and whether its next character is escaped.
    quoted: bool,
    escaped: bool,
    ended: bool,
}

/// How tasks begin.
const TASKS: [&str; 2] = ["Execute(resources=", "Write(bytes="];

impl Tasks {
    /// Those of the stream with this number, whose place in the list is its number modulo the length.
    pub(super) fn of(&self, stream: u64) -> Option<usize> {
        let streams = self.counts.len() as u64;
        self.ended.then(|| self.counts[(stream % streams) as usize])
    }

    fn read(&mut self, character: char) -> fmt::Result {
        if self.quoted {
            self.quoted = self.escaped || character != '"';
            self.escaped = !self.escaped && character == '\\';
            return Ok(());
        }
        if self.counts.is_empty() {
            if character == '[' {
                self.counts.push(0);
            }
            return Ok(());
        }
        match character {
            '"' => self.quoted = true,
            '(' | '[' | '{' => self.depth += 1,
            ']' if self.depth == 0 => {
                self.ended = true;
                return Err(fmt::Error);
            }
            ')' | ']' | '}' => self.depth = self.depth.checked_sub(1).ok_or(fmt::Error)?,
            ',' if self.depth == 0 => self.counts.push(0),
            _ => {}
        }
        Ok(())
    }
}

impl Write for Tasks {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if !self.begin {
            self.begin = piece == "StreamPool";
            return Ok(());
        }
        if let Some(count) = self.counts.last_mut().filter(|_| !self.quoted) {
            *count += TASKS.iter().filter(|begin| piece.contains(**begin)).count();
        }
        piece.chars().try_for_each(|character| self.read(character))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(pieces: &[&str]) -> Tasks {
        let mut tasks = Tasks::default();
        let _ = pieces.iter().try_for_each(|piece| tasks.write_str(piece));
        tasks
    }

    #[test]
    fn tasks_are_counted_by_stream() {
        let tasks = printed(&[
            "pipelines: [Execute(resources=",
            "StreamPool",
            " { streams: [None, Some(Stream { tasks: [",
            "Execute(resources=",
            "3), ",
            "Write(bytes=",
            "8)], name: \"[\\\"",
            "Write(bytes=",
            "\" }), Some(Stream { tasks: [",
            "Execute(resources=",
            "1)] })",
            "]",
            "Execute(resources=",
        ]);
        let found = [0, 1, 2, 4, 6].map(|stream| tasks.of(stream));
        assert_eq!(found, [0, 2, 1, 2, 0].map(Some));
    }

    #[test]
    fn text_that_is_not_as_expected_has_no_tasks() {
        for pieces in [
            &["streams: [None, None]"][..],
            &["StreamPool", " { streams: [None, None"],
            &["StreamPool", " { streams: [None), None]"],
        ] {
            assert_eq!(printed(pieces).of(0), None, "{pieces:?}");
        }
    }
}
