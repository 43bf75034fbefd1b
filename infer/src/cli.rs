//! The command line of `infer`: which command was given.

use clap::{Parser, Subcommand};

pub use crate::commands::CommandError;
use crate::commands::{
    BenchArgs, EvalArgs, GenerateArgs, InfoArgs, PerplexityArgs, ReplArgs, ServeArgs,
};

const EXAMPLES: &str = "\
Examples (`infer` is target/debug/infer, or `cargo run -p infer --`):
  The likeliest continuation of a prompt, by a student that `train` has exported:
      infer generate --model runs/tiny/student \"It was the best of times\"

  Another one every time the seed changes:
      infer generate --model runs/tiny/student --temperature 0.8 --top-p 0.95 --seed 7 \"Once\"

  A prompt from a file, the text into another, nothing on the screen:
      infer generate --model assets/phi-tiny - < prompt.txt > text.txt 2> /dev/null

  A long text that is read once, and two ways to continue it:
      infer generate --model runs/tiny/student --max-tokens 0 --save-state book.state - < book.txt
      infer generate --model runs/tiny/student --load-state book.state
      infer generate --model runs/tiny/student --load-state book.state \" And so\"

  A server for any program that speaks OpenAI's interface, with a page at http://127.0.0.1:8000:
      infer serve --model runs/tiny/student";

/// Uses a Phi-Mamba, a hybrid or a Phi model, from a folder or from the Hugging Face hub.
///
/// The folder has the files of a Hugging Face model: config.json, which decides what the model is;
/// its weights as model.safetensors (or shards of it with their index) or pytorch_model.bin, in f32,
/// f16 or bf16; and tokenizer.json. The students that `train` exports are such folders, and so is any
/// Phi teacher; of a model on the hub they are fetched.
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
    Bench(BenchArgs),
    Serve(ServeArgs),
    Eval(EvalArgs),
    Perplexity(PerplexityArgs),
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
            Command::Bench(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Perplexity(args) => args.run(),
        }
    }
}
