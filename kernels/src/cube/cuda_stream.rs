//! Finds the CUDA stream on which CubeCL runs the work of a thread.
//!
//! CubeCL 0.10 gives each thread a CUDA stream, chosen by the thread's number, but no public method returns it. The
//! server implements `Debug`, and its text contains the addresses of the streams; this module reads them from there, on
//! the device's thread. If the text does not have the expected form, no stream is returned, and callers use another
//! way.

use std::cell::RefCell;
use std::fmt::{self, Write};

use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::stream_id::StreamId;
use cudarc::driver::sys::CUstream;

/// CubeCL's server, which the device's thread owns.
pub(crate) type Server = <CudaRuntime as Runtime>::Server;

/// What the printed server says about one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    address: usize,
    /// The number of commands that the stream was given.
    commands: u64,
}

/// The stream of the task that the device's thread runs now. Only that thread may call this, in a task that comes after
/// other tasks on the same stream. The search is done once and its result is kept.
pub(crate) fn current(server: &Server) -> Option<CUstream> {
    thread_local! {
        static KNOWN: RefCell<Vec<(StreamId, Option<CUstream>)>> = const { RefCell::new(Vec::new()) };
    }
    let id = StreamId::current();
    let known = KNOWN.with_borrow(|known| known.iter().find(|(known, _)| *known == id).copied());
    if let Some((_, stream)) = known {
        return stream;
    }
    let stream = look(server).map(|seen| seen.address as CUstream);
    if stream.is_none() {
        log::warn!(
            "CubeCL's stream cannot be found: decoding and products of matrices take longer"
        );
    }
    KNOWN.with_borrow_mut(|known| known.push((id, stream)));
    stream
}

/// How many commands that stream was given, launches and reservations of memory among them.
pub(crate) fn commands(server: &Server) -> Option<u64> {
    look(server).map(|seen| seen.commands)
}

fn look(server: &Server) -> Option<Seen> {
    let mut pool = Pool::default();
    // It fails when more is printed than is read.
    let _ = write!(pool, "{server:?}");
    pool.stream(StreamId::current().value)
}

/// The part of a printed server that lists its streams:
/// `StreamPool { streams: [Some(StreamWrapper { stream: Stream { sys: 0x5581, .. }, cursor: 7, .. }), None, ..], ..`.
#[derive(Default)]
struct Pool {
    text: String,
    found: bool,
}

/// How the list begins.
const BEGIN: &str = "StreamPool { streams: [";

/// How an address begins in it.
const ADDRESS: &str = "sys: 0x";

/// How the number of commands begins in it.
const COMMANDS: &str = "cursor: ";

/// Bytes of the list that are read, at most.
const LONGEST: usize = 1 << 20;

impl Write for Pool {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.found |= piece.contains("StreamPool");
        if self.found {
            self.text.push_str(piece);
        }
        if self.text.len() > LONGEST {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

impl Pool {
    /// The stream with this number. Its place in the list is its number modulo the length of the list, without
    /// the last place, which is CubeCL's own.
    fn stream(&self, number: u64) -> Option<Seen> {
        let list = &self.text[self.text.find(BEGIN)? + BEGIN.len()..];
        let places = places(list)?;
        let own = places.len().checked_sub(1).filter(|&own| own > 0)?;
        let place = places[(number % own as u64) as usize];
        let address = usize::from_str_radix(digits(place, ADDRESS)?, 16).ok()?;
        let commands = digits(place, COMMANDS)?.parse().ok()?;
        (address != 0).then_some(Seen { address, commands })
    }
}

/// The digits behind `name` in a printed value.
fn digits<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let digits = &text[text.find(name)? + name.len()..];
    let end = digits.find(|digit: char| !digit.is_ascii_hexdigit())?;
    Some(&digits[..end])
}

/// The items of a printed list, up to its end.
fn places(list: &str) -> Option<Vec<&str>> {
    let (mut places, mut depth, mut begin) = (Vec::new(), 0usize, 0);
    let mut characters = list.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ']' if depth == 0 => {
                places.push(&list[begin..at]);
                return Some(places);
            }
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                places.push(&list[begin..at]);
                begin = at + 1;
            }
            '"' => {
                // To the end of the string.
                while let Some((_, inside)) = characters.next() {
                    match inside {
                        '\\' => drop(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Pool {
        Pool {
            text: text.into(),
            found: true,
        }
    }

    #[test]
    fn a_stream_is_read_at_its_place() {
        let pool = pool(
            "StreamPool { streams: [None, Some(StreamWrapper { stream: Stream { sys: 0x7f01ab, memory: Memory \
             \"[(\\\"\", errors: [None] }, cursor: 3, synced: {} }), Some(StreamWrapper { stream: Stream { sys: 0x2 \
             }, cursor: 12 }), None], factory: 1 }",
        );
        let seen = |address, commands| Some(Seen { address, commands });
        assert_eq!(pool.stream(1), seen(0x7f01ab, 3));
        assert_eq!(pool.stream(4), seen(0x7f01ab, 3));
        assert_eq!(pool.stream(2), seen(2, 12));
        // Nothing was queued there.
        assert_eq!(pool.stream(0), None);
    }

    #[test]
    fn text_that_is_not_as_expected_has_no_stream() {
        for text in [
            "",
            "StreamPool { streams: [",
            "StreamPool { streams: []",
            "StreamPool { streams: [None]",
            "StreamPool { streams: [Some(Stream { sys: 0x0, cursor: 1 }), None]",
            "StreamPool { streams: [Some(Stream { sys: 0x3 }), None]",
            "StreamPool { streams: [Some(Stream { sys: 0x12, cursor: 1), None]",
            "StreamPool { streams: [Some(\"no end), None]",
        ] {
            assert_eq!(pool(text).stream(0), None, "{text}");
        }
    }
}
