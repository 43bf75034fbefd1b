//! The driver's stream behind what a thread queues on CUDA.
//!
//! CubeCL 0.10 gives each thread a stream of the driver, by the number of the thread, and its server keeps them to
//! itself: no method returns one. But the server can be printed, its streams too, and so their addresses can be
//! read. It is printed once for each stream, on the device's thread. Where the text is not as expected, there is no
//! stream, and callers do without.

use std::cell::RefCell;
use std::fmt::{self, Write};

use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::stream_id::StreamId;
use cudarc::driver::sys::CUstream;

/// What the device's thread computes with.
pub(crate) type Server = <CudaRuntime as Runtime>::Server;

/// The stream of the task that the device's thread runs, if anything was queued on it before. To be called by that
/// thread, within a task.
pub(crate) fn current(server: &Server) -> Option<CUstream> {
    thread_local! {
        static KNOWN: RefCell<Vec<(StreamId, CUstream)>> = const { RefCell::new(Vec::new()) };
    }
    let id = StreamId::current();
    let known = KNOWN.with_borrow(|known| known.iter().find(|(known, _)| *known == id).copied());
    if let Some((_, stream)) = known {
        return Some(stream);
    }
    let mut pool = Pool::default();
    // It fails when the pool has been read.
    let _ = write!(pool, "{server:?}");
    let stream = pool.stream(id.value)? as CUstream;
    KNOWN.with_borrow_mut(|known| known.push((id, stream)));
    Some(stream)
}

/// The part of a printed server that lists its streams:
/// `StreamPool { streams: [Some(StreamWrapper { stream: Stream { sys: 0x5581, .. }, .. }), None, ..], ..`.
#[derive(Default)]
struct Pool {
    text: String,
    found: bool,
}

/// How the list begins.
const BEGIN: &str = "StreamPool { streams: [";

/// How an address begins in it.
const ADDRESS: &str = "sys: 0x";

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
    /// The address of the stream with this number. A stream's place in the list is its number modulo the length of
    /// the list, without the last place, which is CubeCL's own.
    fn stream(&self, number: u64) -> Option<usize> {
        let list = &self.text[self.text.find(BEGIN)? + BEGIN.len()..];
        let places = places(list)?;
        let own = places.len().checked_sub(1).filter(|&own| own > 0)?;
        let place = places[(number % own as u64) as usize];
        let address = &place[place.find(ADDRESS)? + ADDRESS.len()..];
        let end = address.find(|digit: char| !digit.is_ascii_hexdigit())?;
        let address = usize::from_str_radix(&address[..end], 16).ok()?;
        (address != 0).then_some(address)
    }
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
    fn the_address_of_a_stream_is_read_at_its_place() {
        let pool = pool(
            "StreamPool { streams: [None, Some(StreamWrapper { stream: Stream { sys: 0x7f01ab, memory: Memory \
             \"[(\\\"\", errors: [None] }, cursor: 3 }), Some(StreamWrapper { stream: Stream { sys: 0x2, m: 1 } }), \
             None], factory: 1 }",
        );
        assert_eq!(pool.stream(1), Some(0x7f01ab));
        assert_eq!(pool.stream(4), Some(0x7f01ab));
        assert_eq!(pool.stream(2), Some(2));
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
            "StreamPool { streams: [Some(Stream { sys: 0x0 }), None]",
            "StreamPool { streams: [Some(Stream { sys: 0x12), None]",
            "StreamPool { streams: [Some(\"no end), None]",
        ] {
            assert_eq!(pool(text).stream(0), None, "{text}");
        }
    }
}
