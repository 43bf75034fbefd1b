//! A reader into which bytes that were read can be put back.

use std::io::{BufRead, Read, Result};

/// `rest`, after the bytes that were put back.
pub(super) struct PutBack<R> {
    bytes: Vec<u8>,
    /// How many of `bytes` were read again.
    read: usize,
    rest: R,
}

impl<R> PutBack<R> {
    pub(super) fn new(rest: R) -> Self {
        Self {
            bytes: Vec::new(),
            read: 0,
            rest,
        }
    }

    /// Lets `bytes` be read before all that is still to come.
    pub(super) fn put_back(&mut self, mut bytes: Vec<u8>) {
        bytes.extend_from_slice(&self.bytes[self.read..]);
        (self.bytes, self.read) = (bytes, 0);
    }
}

impl<R: BufRead> Read for PutBack<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for PutBack<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        if self.read == self.bytes.len() {
            // Frees the memory.
            (self.bytes, self.read) = (Vec::new(), 0);
            self.rest.fill_buf()
        } else {
            Ok(&self.bytes[self.read..])
        }
    }

    fn consume(&mut self, count: usize) {
        if self.bytes.is_empty() {
            self.rest.consume(count);
        } else {
            self.read += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_comes_first_and_is_freed() {
        let mut text = PutBack::new(&b"three\nfour\n"[..]);
        text.put_back(b"two\n".to_vec());
        text.put_back(b"one\n".to_vec());
        let mut lines = Vec::new();
        let mut line = Vec::new();
        while text.read_until(b'\n', &mut line).unwrap() > 0 {
            lines.push(String::from_utf8(std::mem::take(&mut line)).unwrap());
        }
        assert_eq!(lines.concat(), "one\ntwo\nthree\nfour\n");
        assert_eq!(text.bytes.capacity(), 0);
    }
}
