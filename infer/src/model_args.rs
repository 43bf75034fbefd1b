//! The options that say how tokens are chosen.

use clap::Args;

use crate::SamplingSettings;

/// These apply in this order, and mean what they mean in Hugging Face's transformers.
#[derive(Debug, Args)]
#[command(next_help_heading = "How tokens are chosen (applied in this order)")]
pub(crate) struct SamplingArgs {
    /// Makes tokens that have occurred less likely; 1 is off
    ///
    /// The logit of each token of the prompt and of the text so far is divided by this if positive,
    /// multiplied if negative. Above 1 discourages repetition (1.1 to 1.3 are usual).
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,

    /// How bold choices are; 0 always takes the likeliest token
    ///
    /// The logits are divided by this: 1 draws from the model's own probabilities, less makes likely
    /// tokens likelier. At 0 there is no chance: --top-k, --top-p, --min-p and --seed change nothing.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,

    /// Draws only from this many of the likeliest tokens; 0 is off, 1 always takes the likeliest
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    top_k: usize,

    /// Draws only from the likeliest tokens that together have this probability; 1 is off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,

    /// Draws only from tokens at least this many times as likely as the likeliest; 0 is off
    ///
    /// 0.05 to 0.1 are usual.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,

    /// Where the random numbers start
    ///
    /// The same seed gives the same random numbers on every machine, and so the same text wherever
    /// the model's arithmetic rounds alike.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
}

impl From<SamplingArgs> for SamplingSettings {
    fn from(args: SamplingArgs) -> Self {
        Self {
            repetition_penalty: args.repetition_penalty,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
        }
    }
}
