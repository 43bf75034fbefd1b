//! The elements of a JSON array, one after another.

use std::io::{self, BufRead};

/// The most bytes of an element, which is in memory as a whole.
const ELEMENT_BYTES: usize = 256 << 20;

/// Splits the text of one JSON array into the texts of its elements.
pub(super) struct Elements<R> {
    text: R,
    line: u64,
    /// The line at which the last element begins.
    element_line: u64,
    next: Next,
}

#[derive(Clone, Copy, PartialEq)]
enum Next {
    Opening,
    FirstElement,
    Element,
    Comma,
    Nothing,
}

pub(super) enum Element {
    /// The bytes of an element, which need not be JSON.
    Json(Vec<u8>),
    End,
    /// The text is no array from here on.
    NoArray {
        reason: &'static str,
    },
}

impl<R: BufRead> Elements<R> {
    pub(super) fn new(text: R) -> Self {
        Self {
            text,
            line: 1,
            element_line: 1,
            next: Next::Opening,
        }
    }

    /// The line, from 1, at which the last element begins or the last fault is.
    pub(super) fn element_line(&self) -> u64 {
        self.element_line
    }

    pub(super) fn next(&mut self) -> io::Result<Element> {
        loop {
            let byte = self.first_visible()?;
            self.element_line = self.line;
            let fault = |reason| Ok(Element::NoArray { reason });
            match (self.next, byte) {
                (Next::Nothing, None) => return Ok(Element::End),
                (Next::Nothing, Some(_)) => return fault("something follows the array"),
                (_, None) => return fault("the array is not closed"),
                (Next::Opening, Some(b'[')) => self.next = Next::FirstElement,
                (Next::Opening, Some(_)) => return fault("no array begins here"),
                (Next::FirstElement | Next::Comma, Some(b']')) => self.next = Next::Nothing,
                (Next::Comma, Some(b',')) => self.next = Next::Element,
                (Next::Comma, Some(_)) => return fault("no comma between two records"),
                (Next::FirstElement | Next::Element, Some(_)) => {
                    self.next = Next::Comma;
                    return self.element();
                }
            }
            self.text.consume(1);
        }
    }

    /// The next byte that is no blank. It is not taken.
    fn first_visible(&mut self) -> io::Result<Option<u8>> {
        loop {
            let Some(&byte) = self.text.fill_buf()?.first() else {
                return Ok(None);
            };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.text.consume(1);
        }
    }

    /// The bytes up to the comma or the bracket that follows the element.
    fn element(&mut self) -> io::Result<Element> {
        let mut json = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let bytes = self.text.fill_buf()?;
            let mut used = 0;
            let mut ended = bytes.is_empty();
            for &byte in bytes {
                if in_string {
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b',' | b'}' | b']' if depth == 0 => {
                            ended = true;
                            break;
                        }
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                }
                self.line += u64::from(byte == b'\n');
                used += 1;
            }
            json.extend(&bytes[..used]);
            self.text.consume(used);
            if ended {
                return Ok(Element::Json(json));
            }
            if json.len() > ELEMENT_BYTES {
                let reason = "a record of more than 256 MiB; write such records as JSON lines";
                return Ok(Element::NoArray { reason });
            }
        }
    }
}
