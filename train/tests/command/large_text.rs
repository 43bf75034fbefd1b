//! The memory of `train prepare` on a text that is larger than the memory: `TRAIN_TEXT_GB=10 cargo test ... --
//! --ignored`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// Bytes of text of a file; of one `.jsonl.gz`, before it is compressed.
const FILE: u64 = 256 << 20;
/// The share of the text that comes from standard input: what is read there is kept on the disk as it is.
const FROM_STANDARD_INPUT: u64 = 10;
/// What the program may take, in bytes: this, and this much for each core. The datasets' README has both.
const AT_MOST: [u64; 2] = [256 << 20, 64 << 20];

/// Documents of JSON lines, each other than all before, but so alike that they are short when compressed.
struct Documents {
    paragraphs: Vec<String>,
    next: u64,
}

impl Documents {
    /// Those whose numbers begin at `next`.
    fn from(next: u64) -> Self {
        const WORDS: [&str; 16] = [
            "the", "of", "river", "window", "and", "morning", "was", "she", "lantern", "in", "a",
            "stone", "under", "quiet", "seven", "walked",
        ];
        let mut random = 1u64;
        let mut word = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            WORDS[(random >> 60) as usize]
        };
        let paragraph = |_| (0..400).map(|_| word()).collect::<Vec<_>>().join(" ");
        Self {
            paragraphs: (0..8).map(paragraph).collect(),
            next,
        }
    }

    /// Writes documents of about `bytes` in all.
    fn write(&mut self, bytes: u64, to: &mut impl Write) -> std::io::Result<()> {
        let mut written = 0;
        while written < bytes {
            let paragraph = &self.paragraphs[self.next as usize % self.paragraphs.len()];
            writeln!(to, "{{\"text\": \"{} {paragraph}\"}}", self.next)?;
            written += paragraph.len() as u64;
            self.next += 1;
        }
        Ok(())
    }
}

/// Writes files of `bytes` of text in all into `folder`, on all cores.
fn write_files(folder: &Path, bytes: u64) {
    let next = AtomicU64::new(0);
    let write = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number * FILE >= bytes {
            return;
        }
        let file = File::create(folder.join(format!("{number:04}.jsonl.gz"))).expect("a file");
        let mut file = GzEncoder::new(BufWriter::new(file), Compression::fast());
        // A document has more than one byte, so no number comes twice.
        let mut documents = Documents::from(number * FILE);
        let bytes = FILE.min(bytes - number * FILE);
        documents.write(bytes, &mut file).expect("a disk");
        let file = file.finish();
        file.and_then(|mut file| file.flush()).expect("a disk");
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(write);
        }
    });
}

/// The most memory that a process has had, in bytes; `None` when it has ended.
fn peak(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

#[test]
#[ignore = "takes half an hour on two cores, and half of the text's size on the disk for its tokens"]
fn memory_is_bounded_whatever_the_size_of_the_text() {
    let gigabytes = std::env::var("TRAIN_TEXT_GB").ok();
    let gigabytes: f64 = gigabytes.map_or(10.0, |text| text.parse().expect("a number"));
    let all = (gigabytes * 1e9) as u64;
    let parent = tempfile::tempdir_in(scratch()).expect("a temporary folder");
    let text = parent.path().join("text");
    std::fs::create_dir(&text).expect("a folder");
    let from_files = all - all / FROM_STANDARD_INPUT;
    write_files(&text, from_files);

    let begun = Instant::now();
    let mut command = Command::new(program());
    command
        .args([
            "prepare",
            "--set",
            "data.validation=assets/text/pd-validation.json.gz",
        ])
        .args(["--set", &format!("data.train={},-", text.display())])
        .args([
            "--set",
            &format!("data.cache={}", parent.path().join("tokens").display()),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("a program");
    let mut input = child.stdin.take().expect("a pipe");
    let feeds = std::thread::spawn(move || {
        Documents::from(from_files).write(all / FROM_STANDARD_INPUT, &mut input)
    });
    let id = child.id();
    let mut most = 0;
    while child.try_wait().expect("a child").is_none() {
        most = most.max(peak(id).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().expect("an end");
    feeds
        .join()
        .unwrap()
        .expect("a pipe that is read to its end");
    assert!(output.status.success());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{}", stdout(&output));
    println!(
        "{gigabytes} GB of text: at most {} MiB of memory on {cores} cores, {:.1} MB of text a second",
        most >> 20,
        all as f64 / seconds / 1e6
    );
    let bound = AT_MOST[0] + cores * AT_MOST[1];
    assert!(most > 0, "the system does not say what memory is used");
    assert!(most <= bound, "{most} bytes of memory, more than {bound}");
}
