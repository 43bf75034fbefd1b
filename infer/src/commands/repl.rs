//! `infer repl`.

use clap::Args;
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::CommandError;
use crate::chat::ChatTemplate;
use crate::model_args::{FoundModel, ModelArgs, SamplingArgs};
use crate::repl;
use crate::sampling::SamplingSettings;

/// Writes a text with a model, or talks with it, in turns.
///
/// Each line that is typed is appended to the text, and the model continues it. A base model does not
/// answer questions: write the beginning of the text that it is to continue. After an empty line the
/// model continues where it stopped. With --chat each line is a message, which the model answers. A line
/// that begins with / is a command; /help lists them.
///
/// Ctrl-C stops the model, Ctrl-D at the prompt ends the program. Lines can also come from a pipe;
/// standard output then has what the model writes, and standard error the rest.
#[derive(Debug, Args)]
pub(crate) struct ReplArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The most tokens that the model makes in its turn
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    max_tokens: usize,

    /// Talks with the model, by the chat template of its folder
    ///
    /// The template is looked for beside the tokenizer, where transformers looks: in chat_template.jinja and
    /// in tokenizer_config.json. The model's state is kept after each turn, so that only what is new is read.
    #[arg(long)]
    chat: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
}

impl ReplArgs {
    /// Reads lines until there are no more.
    pub fn run(self) -> Result<(), CommandError> {
        let backend = self.model.compute.backend()?;
        let sampling = SamplingSettings::from(self.sampling);
        sampling.validate()?;
        let model = self.model.find()?;
        let chat = self.chat.then(|| model.chat_template()).transpose()?;
        backend.dispatch(ReplWork {
            model,
            chat,
            sampling,
            max_tokens: self.max_tokens,
        })?
    }
}

struct ReplWork {
    model: FoundModel,
    chat: Option<ChatTemplate>,
    sampling: SamplingSettings,
    max_tokens: usize,
}

impl Work for ReplWork {
    type Output = Result<(), CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (sampling, max_tokens) = (self.sampling, self.max_tokens);
        let loaded = self
            .model
            .load_to_generate::<B>(sampling, max_tokens, &device);
        let (model, options) = loaded?;
        let (tokenizer, chat) = (&self.model.tokenizer, self.chat.as_ref());
        Ok(repl::run(&model, &device, tokenizer, options, chat)?)
    }
}
