//! `infer perplexity`.

use std::path::PathBuf;

use clap::Args;
use datasets::{Documents, source_files};
use serde_json::json;

use super::CommandError;
use super::scoring::ScoringArgs;
use crate::eval::{EvalError, Texts};

const EXAMPLES: &str = "\
Examples:
  Windows that do not overlap, as lm-evaluation-harness has them:
      infer perplexity --model runs/tiny/student assets/text/pd-validation.json.gz

  Every token predicted from at least 1536 others:
      infer perplexity --model microsoft/phi-1_5 --stride 512 book.txt";

/// Measures how well a model predicts texts, per token and per byte.
///
/// Each document is scored separately: its first token is predicted from a begin-of-text or, where the
/// tokenizer has none, an end-of-text token, every other from those before it in a window of --max-length
/// tokens that slides by --stride. The
/// perplexity of all tokens together is printed, with the same per byte, which can be compared
/// between models whose tokenizers differ.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct PerplexityArgs {
    /// Files and folders of text
    ///
    /// .txt has one document a file; .jsonl has one a line, as the "text" of a JSON object; .json the same,
    /// or one array of such objects or of texts. All of these may also be .gz or .zst. .parquet has one a
    /// row, in the column "text".
    #[arg(required = true, value_name = "FILE|FOLDER")]
    texts: Vec<PathBuf>,

    #[command(flatten)]
    scoring: ScoringArgs,

    /// By how many tokens the window slides; as far as it is long if not given
    ///
    /// Less gives each token more to be predicted from, and takes more time.
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    stride: Option<usize>,
}

impl PerplexityArgs {
    /// Runs the command.
    pub fn run(self) -> Result<(), CommandError> {
        self.scoring.check()?;
        let files = source_files(&self.texts)?;
        let scored = self.scoring.score(|tokenizer, max_length| {
            let stride = self.stride.unwrap_or(max_length);
            if stride == 0 || stride > max_length {
                return Err(EvalError::Stride { stride, max_length });
            }
            let mut texts = Texts::default();
            for document in Documents::new(files) {
                texts.add(&document?, tokenizer, max_length, stride)?;
            }
            let requests = std::mem::take(&mut texts.requests);
            Ok(((texts, stride), requests))
        })?;
        let (texts, stride) = &scored.plan;
        let metrics = texts.metrics(&scored.scores)?;
        let seconds = scored.time.as_secs_f64();
        let control = self.scoring.control.map(|control| control.to_string());
        let under = control
            .as_ref()
            .map(|control| format!("control          {control}\n"));
        let shown = format!(
            "perplexity       {:.4} per token\n\
             byte perplexity  {:.4} per byte, {:.4} bits\n\
             log-likelihood   {:.3}\n\
             text             {} documents, {} tokens, {} bytes\n\
             windows          {} tokens, by {stride}\n\
             {}",
            metrics.perplexity,
            metrics.byte_perplexity,
            metrics.bits_per_byte,
            metrics.log_likelihood,
            texts.documents,
            texts.tokens,
            texts.bytes,
            scored.max_length,
            under.unwrap_or_default(),
        );
        let rate = texts.tokens as f64 / seconds.max(1e-9);
        let speed = if scored.resumed {
            format!("{seconds:.1} s for what was left")
        } else {
            format!("{seconds:.1} s, {rate:.0} tokens/s")
        };
        let report = json!({
            "model": self.scoring.model.model,
            "control": control,
            "backend": scored.backend.name(),
            "max_length": scored.max_length,
            "stride": stride,
            "documents": texts.documents,
            "tokens": texts.tokens,
            "bytes": texts.bytes,
            "log_likelihood": metrics.log_likelihood,
            "perplexity": metrics.perplexity,
            "byte_perplexity": metrics.byte_perplexity,
            "bits_per_byte": metrics.bits_per_byte,
            "seconds": seconds,
        });
        scored.finish(&self.scoring, &shown, &speed, || report)
    }
}
