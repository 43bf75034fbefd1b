//! Tokenises text into shards twice and prints the time of each: the second call finds the shards.
//!
//! ```text
//! cargo run -p datasets --example prepare -- TOKENIZER.json CACHE SOURCE...
//! ```

use std::path::PathBuf;
use std::time::Instant;

use datasets::{PrepareOptions, TokenShards, Tokenizer};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(tokenizer), Some(cache)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: prepare TOKENIZER.json CACHE SOURCE...");
    };
    let tokenizer = Tokenizer::from_file(tokenizer)?;
    let options = PrepareOptions::new("example", arguments, &tokenizer, cache);
    for _ in 0..2 {
        let begun = Instant::now();
        let shards = TokenShards::prepare(&options)?;
        let manifest = shards.manifest();
        println!(
            "{} documents, {} bytes of text, {} tokens: {:.3} s",
            manifest.documents,
            manifest.text_bytes,
            manifest.tokens,
            begun.elapsed().as_secs_f64()
        );
    }
    Ok(())
}
