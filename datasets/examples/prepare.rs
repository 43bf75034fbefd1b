//! Measures the speed of tokenising: text into shards on all cores, and the same text by the crate `tokenizers` alone,
//! which keeps it in memory. Each is done twice, and the tokens per second of the faster time are printed.
//!
//! ```text
//! cargo run --release -p datasets --example prepare -- TOKENIZER.json CACHE SOURCE...
//! ```

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use datasets::{Documents, PrepareOptions, TokenShards, Tokenizer, source_files};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(file), Some(cache)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: prepare TOKENIZER.json CACHE SOURCE...");
    };
    let tokenizer = Tokenizer::from_file(&file)?;
    let alone = tokenizers::Tokenizer::from_file(&file).map_err(|error| anyhow::anyhow!(error))?;
    let sources: Vec<PathBuf> = arguments.collect();
    let documents = Documents::new(source_files(&sources)?).collect::<Result<Vec<String>, _>>()?;

    let (mut rate, mut rate_alone) = (0.0f64, 0.0f64);
    for round in 0..2 {
        let inputs: Vec<&str> = documents.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let encoded = alone.encode_batch_fast(inputs, false);
        let encoded = encoded.map_err(|error| anyhow::anyhow!(error))?;
        let seconds = begun.elapsed().as_secs_f64();
        let tokens: usize = encoded.iter().map(|encoding| encoding.len()).sum();
        rate_alone = rate_alone.max(tokens as f64 / seconds);
        drop(encoded);

        // Each round uses a new name, because existing tokens would only be opened.
        let name = format!("{}-{round}", std::process::id());
        let cache = cache.join(name);
        let options = PrepareOptions::new("example", sources.clone(), &tokenizer, &cache);
        let begun = Instant::now();
        let shards = TokenShards::prepare(&options)?;
        let seconds = begun.elapsed().as_secs_f64();
        // There is one end-of-text token after each document.
        let expected = (tokens + documents.len()) as u64;
        ensure!(
            shards.tokens() == expected,
            "{} tokens, not {expected}",
            shards.tokens()
        );
        rate = rate.max(tokens as f64 / seconds);
        std::fs::remove_dir_all(&cache).with_context(|| cache.display().to_string())?;
    }
    println!(
        "prepare: {rate:.0} tokens/s; tokenizers alone: {rate_alone:.0} tokens/s; {:.3} of it",
        rate / rate_alone
    );
    Ok(())
}
