//! Damaged files, for tests of whatever reads them: each must give a usable value or an error, never a panic
//! and never more memory than a file of that size could need.
//!
//! ```
//! use tests::mutations::each;
//!
//! let whole = b"a file's bytes";
//! each(100, |mutator| {
//!     let damaged = mutator.bytes(whole);
//!     let _ = std::str::from_utf8(&damaged);
//! });
//! ```

use std::ops::Range;

use serde_json::{Value, json};

/// Calls `test` with `cases` mutators, each of which makes other damage, the same in every run.
///
/// # Panics
/// If `test` does; the number of the case is printed then, and [`Mutator::new`] of it repeats the damage.
pub fn each(cases: u64, mut test: impl FnMut(&mut Mutator)) {
    for case in 0..cases {
        let named = Named(case);
        test(&mut Mutator::new(case));
        drop(named);
    }
}

/// Says which case failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was damage number {}", self.0);
        }
    }
}

/// What damages files, by numbers that follow from a seed.
pub struct Mutator(u64);

/// Numbers where readers of sizes and offsets go wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    8,
    64,
    0x7f,
    0xff,
    0xffff,
    1 << 24,
    (1 << 24) + 1,
    i32::MAX as u64,
    1 << 33,
    i64::MAX as u64,
    u64::MAX,
];

/// Bytes that mean something in texts, and in pickles.
const BYTES: &[u8] = b"0123456789[]{}()\":,.-+eFBIt\\/\n\r\t \0\xff";

impl Mutator {
    /// One whose damage follows from `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of `choices`.
    pub fn choose<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A copy of `whole`, any file, with one to three faults: bytes changed, added, lost, repeated, zeroed.
    pub fn bytes(&mut self, whole: &[u8]) -> Vec<u8> {
        self.bytes_in(whole, 0..whole.len())
    }

    /// [`bytes`](Self::bytes) with most faults in the range `part`, such as a header.
    pub fn bytes_in(&mut self, whole: &[u8], part: Range<usize>) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(3) {
            let part = part.start.min(bytes.len())..part.end.min(bytes.len());
            let at = if part.is_empty() || self.below(8) == 0 {
                self.below(bytes.len() + 1)
            } else {
                part.start + self.below(part.len())
            };
            self.damage(&mut bytes, at);
        }
        bytes
    }

    /// One fault at the place `at`.
    fn damage(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let end = bytes.len();
        let piece = |length: usize| at..end.min(at + length);
        match self.below(12) {
            0..3 => {
                let byte = self.next() as u8;
                bytes[piece(1)].fill(byte);
            }
            3 | 4 => {
                let byte = *self.choose(BYTES);
                bytes[piece(1)].fill(byte);
            }
            5 => {
                let bit = 1 << self.below(8);
                bytes[piece(1)].iter_mut().for_each(|byte| *byte ^= bit);
            }
            6 | 7 => {
                let number = self.choose(&NUMBERS).to_le_bytes();
                let range = piece(*self.choose(&[1, 2, 4, 8]));
                let length = range.len();
                bytes[range].copy_from_slice(&number[..length]);
            }
            8 => {
                let range = piece(*self.choose(&[1, 2, 16, 512, 4096]));
                bytes[range].fill(0);
            }
            9 => {
                let length = 1 + self.below(16);
                bytes.drain(piece(length));
            }
            10 => {
                let length = 1 + self.below(64);
                let again = bytes[piece(length)].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, again);
            }
            _ => bytes.truncate(at),
        }
    }

    /// A copy of `text`, some JSON, with up to three values replaced by others, with a member less, or damaged
    /// as any file.
    ///
    /// # Panics
    /// If `text` is not JSON.
    pub fn json(&mut self, text: &str) -> Vec<u8> {
        let mut root: Value = serde_json::from_str(text).expect("JSON");
        let mut paths = Vec::new();
        leaves(&root, String::new(), &mut paths);
        match self.below(12) {
            0..8 => {
                for _ in 0..=self.below(3) {
                    // One that is replaced by a number has no values inside any more.
                    let path = self.choose(&paths).clone();
                    let value = self.value();
                    if let Some(place) = root.pointer_mut(&path) {
                        *place = value;
                    }
                }
                root.to_string().into_bytes()
            }
            8 => {
                let Some((parent, key)) = self.choose(&paths).rsplit_once('/') else {
                    return self.bytes(text.as_bytes());
                };
                match root.pointer_mut(parent).expect("a parent") {
                    Value::Object(members) => {
                        members.remove(&key.replace("~1", "/").replace("~0", "~"));
                    }
                    Value::Array(items) => {
                        items.remove(key.parse().expect("a place"));
                    }
                    _ => unreachable!("only these have values inside"),
                }
                root.to_string().into_bytes()
            }
            _ => self.bytes(text.as_bytes()),
        }
    }

    /// A value in the place of another, mostly a number in the place of a size.
    pub fn value(&mut self) -> Value {
        match self.below(12) {
            0..6 => (*self.choose(&NUMBERS)).into(),
            6 => self.next().into(),
            7 => (self.next() as i64).into(),
            8 => f64::from_bits(self.next()).into(),
            9 => (0..200).fold(json!([]), |inner, _| json!([inner])),
            _ => self
                .choose(&[
                    json!(null),
                    json!(""),
                    json!("x"),
                    json!("\u{0}/../é"),
                    json!([]),
                    json!({}),
                    json!(true),
                    json!(-1),
                    json!([1, "a"]),
                ])
                .clone(),
        }
    }

    /// A copy of `text`, of lines with numbers such as a TOML or a list of checksums, with a number replaced, a
    /// line lost, doubled or moved, or damaged as any file.
    pub fn text(&mut self, text: &str) -> Vec<u8> {
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        let at = self.below(lines.len().max(1));
        match self.below(8) {
            0..3 => self.number(text),
            3 if !lines.is_empty() => {
                lines.remove(at);
                lines.concat().into_bytes()
            }
            4 if !lines.is_empty() => {
                let to = self.below(lines.len());
                lines.insert(to, lines[at]);
                lines.concat().into_bytes()
            }
            5 if !lines.is_empty() => {
                let to = self.below(lines.len());
                lines.swap(at, to);
                lines.concat().into_bytes()
            }
            _ => self.bytes(text.as_bytes()),
        }
    }

    /// `text` with another number in the place of one that it holds.
    fn number(&mut self, text: &str) -> Vec<u8> {
        let is_digit = |at: usize| text.as_bytes()[at].is_ascii_digit();
        let starts = (0..text.len()).filter(|&at| is_digit(at) && (at == 0 || !is_digit(at - 1)));
        let starts: Vec<usize> = starts.collect();
        if starts.is_empty() {
            return self.bytes(text.as_bytes());
        }
        let start = *self.choose(&starts);
        let length = text[start..].bytes().take_while(u8::is_ascii_digit).count();
        let other = match self.below(4) {
            0 => format!("-{}", self.choose(&NUMBERS)),
            1 => (*self.choose(&["nan", "inf", "1e400", "0.5", "\"x\"", "[]", ""])).to_owned(),
            _ => self.choose(&NUMBERS).to_string(),
        };
        [&text[..start], &other, &text[start + length..]]
            .concat()
            .into_bytes()
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The paths of all values that have none inside.
fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                leaves(value, format!("{path}/{key}"), found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                leaves(value, format!("{path}/{i}"), found);
            }
        }
        _ => found.push(path),
    }
}

/// How much memory the program asks for from here on.
///
/// It is the largest size of the address space so far: memory that is asked for and not used counts, and
/// threads' stacks and files that are mapped count too. Elsewhere than on Linux it is not known, and 0.
pub struct Memory(u64);

impl Memory {
    /// Counts from here on.
    pub fn start() -> Self {
        Self(asked_for())
    }

    /// The bytes that the program's address space has grown by.
    pub fn more(&self) -> u64 {
        asked_for() - self.0
    }
}

#[cfg(target_os = "linux")]
fn asked_for() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.expect("a peak").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") << 10
}

#[cfg(not(target_os = "linux"))]
fn asked_for() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_various_and_repeatable() {
        let text = r#"{"a/b": [1, {"c": "d"}], "e": 2.5}"#;
        let mut whole = 0;
        each(2000, |mutator| {
            whole += u64::from(mutator.json(text) == text.as_bytes());
            mutator.bytes(b"");
            mutator.bytes_in(text.as_bytes(), 30..1000);
            mutator.text("a = 1\nb = 22\n");
            mutator.text("");
        });
        assert!(whole < 200, "{whole} were not damaged");
        let [one, two] = [(), ()].map(|()| Mutator::new(9).bytes(text.as_bytes()));
        assert_eq!(one, two);
    }
}
