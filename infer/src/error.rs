//! Why tokens cannot be generated.

use crate::sampling::SamplingError;

/// Why tokens cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is no token to predict from.
    #[error(
        "the prompt is empty and the tokenizer has no end-of-text token to begin with; give a prompt"
    )]
    EmptyPrompt,
    /// More tokens than a model with attention has positions for.
    #[error(
        "the prompt has {tokens} tokens, the model has positions for {limit} \
         (max_position_embeddings in its config.json); shorten the prompt"
    )]
    PromptTooLong {
        /// The prompt's length, in tokens.
        tokens: usize,
        /// The model's positions.
        limit: usize,
    },
    /// A token that the model has no embedding for.
    #[error(
        "the prompt has token {token}, and the model's vocabulary ends at {vocab_size}; a tokenizer with such a token \
         does not belong to this model"
    )]
    UnknownToken {
        /// The token's id.
        token: u32,
        /// The model's vocabulary, padding included.
        vocab_size: usize,
    },
    /// A setting is out of range, or the logits are no scores.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer cannot turn a token into text.
    #[error(transparent)]
    Text(#[from] datasets::DataError),
    /// The device has failed; the message is the backend's.
    #[error("the logits cannot be read from the device: {0}")]
    Device(String),
}
