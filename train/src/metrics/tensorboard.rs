//! What TensorBoard reads: a file of events, each with a time, a step and named numbers.
//!
//! The format is the public one of TensorFlow: records with their length, framed by checksums
//! (`tensorflow/core/lib/io/record_writer.h`), each an `Event` in protobuf (`tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto`). Of these messages only the fields below are needed, so they are written
//! here, byte by byte.
//!
//! The step of an event is the number of training tokens. It grows over all stages, so that runs with different batch
//! sizes can be compared in one chart.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Record;

/// A file of events that grows with the run.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
}

impl EventFile {
    /// Makes a file in `folder` with the `records` so far, and removes older files: they may have steps that will be
    /// done again.
    pub(super) fn create(folder: &Path, records: &[Record]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("events.out.tfevents.") {
                fs::remove_file(&path)?;
            }
        }
        let name = format!("events.out.tfevents.{}.train", now().as_secs());
        let mut events = Self {
            file: File::create(folder.join(name))?,
        };
        let mut version = time_and_step(0);
        bytes_field(&mut version, 3, b"brain.Event:2");
        events.write(&version)?;
        for record in records {
            events.record(record)?;
        }
        Ok(events)
    }

    /// Appends the numbers of `record`, if it has any.
    pub(super) fn record(&mut self, record: &Record) -> io::Result<()> {
        let (tokens, values) = match record {
            Record::Step(step) => {
                let mut values = vec![
                    (format!("loss/{}", step.stage), step.loss),
                    ("lr".to_owned(), step.lr),
                    ("grad_norm/all".to_owned(), step.grad_norm),
                    ("speed/tokens_per_second".to_owned(), step.tokens_per_second),
                    (
                        "speed/operations_per_second".to_owned(),
                        step.operations_per_second,
                    ),
                    ("speed/data_wait".to_owned(), step.data_wait),
                ];
                let norms = step.grad_norms.iter();
                values.extend(
                    norms.map(|(part, norm)| (format!("grad_norm/{}", part.name()), *norm)),
                );
                let share = step.device_share;
                values.extend(share.map(|share| ("speed/device_share".to_owned(), share)));
                let memory = step.memory_bytes.map(|bytes| bytes as f64);
                values.extend(memory.map(|bytes| ("speed/memory_bytes".to_owned(), bytes)));
                (step.tokens, values)
            }
            Record::Evaluation(evaluation) => {
                let values = [
                    ("perplexity/student", evaluation.student_perplexity),
                    ("perplexity/teacher", evaluation.teacher_perplexity),
                ];
                let values = values.map(|(name, value)| (name.to_owned(), value));
                let mut values = values.to_vec();
                let tasks = evaluation.tasks.iter();
                values.extend(tasks.map(|(name, score)| (format!("tasks/{name}"), *score)));
                (evaluation.tokens, values)
            }
            Record::Note(_) => return Ok(()),
        };
        let mut summary = vec![];
        for (tag, value) in values {
            let mut field = vec![];
            bytes_field(&mut field, 1, tag.as_bytes());
            // simple_value, a float.
            field.push((2 << 3) | 5);
            field.extend((value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &field);
        }
        let mut event = time_and_step(tokens);
        bytes_field(&mut event, 5, &summary);
        self.write(&event)
    }

    /// One record: length, its checksum, the event, its checksum. One write, so that a process that dies leaves at
    /// worst a part of the last one, which readers ignore.
    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        self.file.write_all(&framed(event))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(event);
    record.extend(masked(crc32c(event)).to_le_bytes());
    record
}

/// The first two fields of an event: the time now, a double, and the step.
fn time_and_step(step: u64) -> Vec<u8> {
    let mut event = vec![(1 << 3) | 1];
    event.extend(now().as_secs_f64().to_le_bytes());
    event.push(2 << 3);
    varint(&mut event, step);
    event
}

/// A field of protobuf with a length: bytes, a text or a message.
fn bytes_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push((number << 3) | 2);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// A number of protobuf: seven bits a byte, the lowest first.
fn varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// CRC-32 by Castagnoli's polynomial, bit by bit: the records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let lowest = crc & 1;
            crc = (crc >> 1) ^ (lowest * 0x82f6_3b78);
        }
    }
    !crc
}

/// A checksum in the form in which it is stored. TensorFlow rotates and shifts it, so that the checksum of data with
/// embedded checksums is not degenerate.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::super::{Evaluation, StepMetrics};
    use super::*;

    /// The events of a file, with their checksums compared.
    fn events(folder: &Path) -> Vec<Vec<u8>> {
        let mut files = fs::read_dir(folder).unwrap();
        let bytes = fs::read(files.next().unwrap().unwrap().path()).unwrap();
        assert!(files.next().is_none());
        let (mut rest, mut events) = (&bytes[..], vec![]);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = &rest[12..12 + length];
            assert_eq!(rest[..16 + length], framed(event));
            events.push(event.to_vec());
            rest = &rest[16 + length..];
        }
        events
    }

    /// The vectors of RFC 3720, B.4.
    #[test]
    fn the_checksum_is_castagnoli_s() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn an_event_is_protobuf() {
        let folder = tempfile::tempdir().unwrap();
        let evaluation = Record::Evaluation(Evaluation {
            stage: None,
            step: None,
            tokens: 300,
            teacher_perplexity: 1.5,
            student_perplexity: 2.0,
            tasks: Default::default(),
        });
        let mut file = EventFile::create(folder.path(), std::slice::from_ref(&evaluation)).unwrap();
        file.record(&evaluation).unwrap();
        let events = events(folder.path());
        assert_eq!(events.len(), 3);
        assert!(events[0].ends_with(b"\x10\x00\x1a\x0dbrain.Event:2"));
        let mut expected = vec![0x10, 0xac, 0x02];
        expected.extend(b"\x2a\x36");
        expected.extend(b"\x0a\x19\x0a\x12perplexity/student\x15\x00\x00\x00\x40");
        expected.extend(b"\x0a\x19\x0a\x12perplexity/teacher\x15\x00\x00\xc0\x3f");
        for event in &events[1..] {
            // After the time.
            assert_eq!(event[0], 9);
            assert_eq!(event[9..], expected);
        }
    }

    #[test]
    fn a_new_file_takes_the_place_of_the_old() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.1.train"), "old").unwrap();
        let step = Record::Step(StepMetrics {
            stage: "stage3".to_owned(),
            loss: f64::NAN,
            grad_norms: [(model::Part::Mlp, 1.0)].into(),
            ..StepMetrics::default()
        });
        EventFile::create(folder.path(), &[step]).unwrap();
        let events = events(folder.path());
        assert_eq!(events.len(), 2);
        for tag in ["loss/stage3", "grad_norm/mlp", "speed/data_wait"] {
            let found = events[1]
                .windows(tag.len())
                .any(|part| part == tag.as_bytes());
            assert!(found, "{tag}");
        }
    }
}
