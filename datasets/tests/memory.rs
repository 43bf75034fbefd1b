//! The memory that long texts take, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use datasets::{PrepareOptions, Split, TokenShards, Tokenizer};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

/// Counts the bytes in use, and the most that ever were.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all of the work is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests count the same memory, so one works at a time.
static ONE: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

/// What `work` makes, and the most bytes that it had in use beyond those before, on two threads.
fn measured<T: Send>(work: impl FnOnce() -> T + Send) -> (T, usize) {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    let before = USED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let made = threads.install(work);
    (made, PEAK.load(Relaxed) - before)
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

/// The bundled tokenizer, and one whose tokens depend on the text before them.
fn tokenizers() -> [Tokenizer; 2] {
    let json = fs::read_to_string(asset("phi-tiny/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["normalizer"] = serde_json::json!({ "type": "NFC" });
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let bundled = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
    [bundled, Tokenizer::from_file(path).unwrap()]
}

#[test]
fn a_text_without_blanks_takes_little_memory() {
    let _one = ONE.lock();
    let mut x = 1_u32;
    let base64 = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[x as usize >> 26]
            as char
    });
    let base64: String = base64.take(4 * MIB).collect();
    let [bundled, normalizing] = tokenizers();
    for (text, tokenizer) in [
        ("a".repeat(4 * MIB), &bundled),
        (base64.clone(), &bundled),
        (base64, &normalizing),
    ] {
        let (ids, peak) = measured(|| tokenizer.encode(&text).unwrap());
        // The ids, twice, are the larger part of it.
        let tokens = ids.len();
        assert!(peak < 80 * MIB, "{} MiB for {tokens} tokens", peak / MIB);
    }
}

#[test]
fn a_long_document_takes_no_more_memory_than_short_ones() {
    let _one = ONE.lock();
    let tokenizer = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
    let folder = TempDir::new().unwrap();
    let repeats = 24 * MIB / 16;
    let mut lines = GzEncoder::new(Vec::new(), Compression::fast());
    lines.write_all(b"{\"text\": \"").unwrap();
    for _ in 0..repeats {
        lines.write_all(b"the best of time").unwrap();
    }
    lines.write_all(b"\"}\n").unwrap();
    let path = folder.path().join("a.jsonl.gz");
    fs::write(&path, lines.finish().unwrap()).unwrap();
    let options = PrepareOptions {
        split: Split::Train { per_mille: 0 },
        ..PrepareOptions::new("test", [path], &tokenizer, folder.path().join("cache"))
    };
    let (shards, peak) = measured(|| TokenShards::prepare(&options).unwrap());
    // Whole, its line, its text and its ids would take 24, 24 and 70 MiB.
    assert!(peak < 60 * MIB, "{} MiB for a text of 24", peak / MIB);
    assert_eq!(shards.manifest().text_bytes, 24 << 20);
}
