//! A line of JSON that is too long to be in memory as a whole.

use std::io::{self, BufRead};

use super::record::{BadRecord, bad_json, text_of_object};

/// The most bytes of a line that are kept beside its strings.
const SKELETON_BYTES: usize = 64 << 20;

/// Reads one line that holds a JSON object, part by part of its text.
///
/// Each long string is parsed piece by piece. The rest of the line, without the contents of these strings (its
/// *skeleton*), is parsed at the end like any other line. So a line is accepted if and only if it would be accepted as
/// a whole.
pub(super) struct LongLine {
    skeleton: Vec<u8>,
    /// The raw contents, not parsed yet, of the string that is read.
    string: Vec<u8>,
    /// Whether a part of the string was parsed before.
    cut: bool,
    place: Place,
    /// The digits that are missing of an escape like `\u00e9`.
    digits: u8,
    depth: usize,
    /// Whether a value comes next in the outermost object, not a name.
    is_value: bool,
    /// The field of the text.
    column: String,
    /// The last name in the outermost object was `column`.
    is_text: bool,
    /// The bytes read so far.
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    InString,
    /// After a backslash in a string.
    Escaped,
}

/// What a call of [`LongLine::read`] found.
pub(super) enum Found {
    /// A part of the text, and more may follow.
    Part(String),
    /// The end of the line.
    End,
}

impl LongLine {
    /// A line whose text is in the field `column`.
    pub(super) fn new(column: &str) -> Self {
        Self {
            column: column.to_owned(),
            skeleton: Vec::new(),
            string: Vec::new(),
            cut: false,
            place: Place::Outside,
            digits: 0,
            depth: 0,
            is_value: false,
            is_text: false,
            bytes: 0,
        }
    }

    /// Reads on until there are about `part_bytes` of text, or the line ends.
    ///
    /// # Errors
    /// Outer: the file cannot be read. Inner: the line is no JSON object with a text; then the line is
    /// read to its end.
    pub(super) fn read(
        &mut self,
        file: &mut dyn BufRead,
        part_bytes: usize,
    ) -> io::Result<Result<Found, BadRecord>> {
        loop {
            let bytes = file.fill_buf()?;
            let Some(&first) = bytes.first() else {
                return Ok(self.end());
            };
            if first == b'\n' {
                file.consume(1);
                return Ok(self.end());
            }
            let mut used = 0;
            let mut found = Ok(None);
            while used < bytes.len() && bytes[used] != b'\n' && matches!(found, Ok(None)) {
                found = self.byte(bytes[used], part_bytes);
                used += 1;
            }
            self.bytes += used;
            file.consume(used);
            match found {
                Ok(None) => {}
                Ok(Some(part)) => return Ok(Ok(Found::Part(part))),
                Err(reason) => {
                    skip_line(file)?;
                    return Ok(Err(reason));
                }
            }
        }
    }

    /// Takes one byte of the line. Returns a part of the text that it completes.
    fn byte(&mut self, byte: u8, part_bytes: usize) -> Result<Option<String>, BadRecord> {
        let mut part = None;
        match self.place {
            Place::Escaped => {
                self.string.push(byte);
                self.digits = if byte == b'u' { 4 } else { 0 };
                self.place = Place::InString;
            }
            Place::InString if byte == b'"' => {
                part = self.end_of_string()?;
                self.place = Place::Outside;
            }
            Place::InString => {
                let long = self.string.len() >= part_bytes;
                // A string that is no place to cut for so long is wrong, as the parser will find.
                let too_long = self.string.len() >= part_bytes.saturating_add(64);
                if too_long || (long && self.is_between_characters(byte)) {
                    part = self.piece()?;
                }
                self.string.push(byte);
                self.digits = self.digits.saturating_sub(1);
                if byte == b'\\' {
                    self.place = Place::Escaped;
                }
            }
            Place::Outside => {
                match byte {
                    b'"' => self.place = Place::InString,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    b':' if self.depth == 1 => self.is_value = true,
                    b',' if self.depth == 1 => self.is_value = false,
                    _ => {}
                }
                if byte != b'"' {
                    self.skeleton.push(byte);
                }
            }
        }
        if self.skeleton.len() > SKELETON_BYTES {
            return Err(self.bad("too much beside its strings to be one record"));
        }
        Ok(part)
    }

    /// Whether the contents of a string may be cut before `byte`.
    fn is_between_characters(&self, byte: u8) -> bool {
        let continues = (0x80..0xc0).contains(&byte);
        !continues && self.digits == 0 && !ends_in_half_a_pair(&self.string)
    }

    fn in_text(&self) -> bool {
        self.depth == 1 && self.is_value && self.is_text
    }

    /// Parses the part of a string that was read so far.
    fn piece(&mut self) -> Result<Option<String>, BadRecord> {
        let parsed = self.parse()?;
        self.cut = true;
        self.string.clear();
        Ok(Some(parsed).filter(|_| self.in_text()))
    }

    fn end_of_string(&mut self) -> Result<Option<String>, BadRecord> {
        let parsed = self.parse()?;
        let in_text = self.in_text();
        if self.depth == 1 && !self.is_value {
            self.is_text = !self.cut && parsed == self.column;
        }
        self.skeleton.push(b'"');
        if !self.cut && !in_text {
            self.skeleton.extend(&self.string);
        }
        self.skeleton.push(b'"');
        self.cut = false;
        self.string.clear();
        Ok(Some(parsed).filter(|_| in_text))
    }

    fn parse(&self) -> Result<String, BadRecord> {
        let mut json = Vec::with_capacity(self.string.len() + 2);
        json.push(b'"');
        json.extend(&self.string);
        json.push(b'"');
        serde_json::from_slice(&json).map_err(|error| match bad_json(&error) {
            BadRecord::Json { reason, .. } => self.bad(&reason),
            no_text @ BadRecord::NoText { .. } => no_text,
        })
    }

    fn end(&mut self) -> Result<Found, BadRecord> {
        if self.place != Place::Outside {
            return Err(self.bad("a string is not closed"));
        }
        let skeleton = String::from_utf8(std::mem::take(&mut self.skeleton));
        let skeleton = skeleton.map_err(|_| self.bad("not UTF-8"))?;
        match text_of_object(&skeleton, &self.column) {
            Ok(_) => Ok(Found::End),
            Err(no_text @ BadRecord::NoText { .. }) => Err(no_text),
            Err(BadRecord::Json { reason, .. }) => Err(self.bad(&reason)),
        }
    }

    fn bad(&self, reason: &str) -> BadRecord {
        BadRecord::Json {
            column: self.bytes + 1,
            reason: reason.into(),
        }
    }
}

/// Whether `string` ends in the first of the two escapes that are one character, like `\ud83d`.
fn ends_in_half_a_pair(string: &[u8]) -> bool {
    matches!(
        string.last_chunk::<6>(),
        Some([
            b'\\',
            b'u',
            b'd' | b'D',
            b'8' | b'9' | b'a' | b'b' | b'A' | b'B',
            _,
            _
        ])
    )
}

/// Reads to the end of the line, and forgets it.
pub(super) fn skip_line(file: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        file.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}
