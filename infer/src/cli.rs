//! The command line of `infer`: which command was given.

use clap::{Parser, Subcommand};

pub use crate::commands::CommandError;
use crate::commands::{
    AuditArgs, BenchArgs, EXAMPLES, EvalArgs, GenerateArgs, InfoArgs, PerplexityArgs, QuantizeArgs,
    ReplArgs, ServeArgs,
};

/// Uses a teacher (Phi, Llama, Mistral, Qwen2 or Qwen3), a student or a hybrid, from a folder or from the Hugging
/// Face hub.
///
/// The folder has the files of a Hugging Face model: config.json, which decides what the model is;
/// its weights as model.safetensors or pytorch_model.bin (or shards of either with their index), in f32,
/// f16 or bf16, or as `infer quantize` writes them; and tokenizer.json. The students that `train` exports are such folders, and so is any
/// teacher; of a model on the hub they are fetched. A GGUF file has all of them inside.
#[derive(Debug, Parser)]
#[command(name = "infer", version, after_long_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(GenerateArgs),
    Repl(ReplArgs),
    Info(InfoArgs),
    Quantize(QuantizeArgs),
    Bench(BenchArgs),
    Serve(ServeArgs),
    Eval(EvalArgs),
    Perplexity(PerplexityArgs),
    Audit(AuditArgs),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Every [`CommandError`]. A closed standard output is no error: the command ends.
    pub fn run(self) -> Result<(), CommandError> {
        match self.command {
            Command::Generate(args) => args.run(),
            Command::Repl(args) => args.run(),
            Command::Info(args) => args.run(),
            Command::Quantize(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Perplexity(args) => args.run(),
            Command::Audit(args) => args.run(),
        }
    }
}
