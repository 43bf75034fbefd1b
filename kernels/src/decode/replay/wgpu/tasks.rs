//! Reads from CubeCL's server on wgpu how much work of each stream it holds back, and what it has submitted to the GPU.
//! No public method returns these numbers, but the server implements `Debug`, and its text contains them.

use std::fmt::{self, Write};

/// What is printed of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stream {
    /// Launches and copies that are kept back.
    pub kept: usize,
    /// What it says of what it has given to the GPU, another text each time that launches were among that.
    pub given: Option<String>,
}

/// Finds both in what a server is printed as: `StreamPool { streams: [Some(Stream { tasks: [Execute(resources=3, ..),
/// Write(bytes=8)], .., submission_load: .., pending_write_count: 0 } }), None, ..], ..`.
#[derive(Default)]
pub(super) struct Tasks {
    /// Whether the streams are next.
    begin: bool,
    /// Up to the one that is being printed.
    all: Vec<Stream>,
    /// Brackets that are open within the list of streams.
    depth: usize,
    /// Whether a string is being printed, and whether its next character is escaped.
    quoted: bool,
    escaped: bool,
    ended: bool,
}

/// How tasks begin.
const TASKS: [&str; 2] = ["Execute(resources=", "Write(bytes="];
/// The first of the last fields of a stream: the number of a submission to wgpu's queue, how many launches were submitted
/// since, and then how many copies were not.
const GIVEN: &str = "submission_load";

impl Tasks {
    /// The stream with this number, whose place in the list is its number modulo the length.
    pub(super) fn of(mut self, stream: u64) -> Option<Stream> {
        let streams = self.all.len() as u64;
        self.ended
            .then(|| self.all.swap_remove((stream % streams) as usize))
    }

    fn read(&mut self, character: char) -> fmt::Result {
        if self.quoted {
            self.quoted = self.escaped || character != '"';
            self.escaped = !self.escaped && character == '\\';
            return Ok(());
        }
        if self.all.is_empty() {
            if character == '[' {
                self.all.push(Stream::default());
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
            ',' if self.depth == 0 => self.all.push(Stream::default()),
            _ => {}
        }
        if let Some(text) = self.all.last_mut().and_then(|stream| stream.given.as_mut()) {
            text.push(character);
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
        if let Some(stream) = self.all.last_mut().filter(|_| !self.quoted) {
            stream.kept += TASKS.iter().filter(|begin| piece.contains(**begin)).count();
            if piece == GIVEN {
                stream.given = Some(String::new());
            }
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
        let pieces = [
            "pipelines: [Execute(resources=",
            "StreamPool",
            " { streams: [None, Some(Stream { tasks: [",
            "Execute(resources=",
            "3), ",
            "Write(bytes=",
            "8)], name: \"[\\\"",
            "Write(bytes=",
            "\", ",
            "submission_load",
            ": Init { tasks: 7 }, writes: 0 }), Some(Stream { tasks: [",
            "Execute(resources=",
            "1)] })",
            "]",
            "Execute(resources=",
        ];
        let found = [0, 1, 2, 4, 6].map(|stream| printed(&pieces).of(stream).unwrap());
        assert_eq!(found.each_ref().map(|stream| stream.kept), [0, 2, 1, 2, 0]);
        let given = Some(": Init { tasks: 7 }, writes: 0 })");
        let expected = [None, given, None, given, None];
        assert_eq!(
            found.each_ref().map(|stream| stream.given.as_deref()),
            expected
        );
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
