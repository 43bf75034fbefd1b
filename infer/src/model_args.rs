//! The options that commands share: the model, its tokenizer, the backend and the precision, and how tokens are chosen.
//! The code that finds and loads the model is here too.

use std::path::{Path, PathBuf};

use clap::Args;
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::runtime::{Backend, BackendError};
use model::{CausalLm, Hub, ModelConfig, WeightsError};

use crate::beginning::{BeginningError, with_beginning};
use crate::chat::{ChatFileError, ChatTemplate};
use crate::end_tokens::{EndTokens, EndTokensError};
use crate::generate::GenerateOptions;
use crate::precision::{Precision, PrecisionError};
use crate::sampling::SamplingSettings;

/// The model on the hub whose tokenizer is used for Phi-Mambas on the hub that have none.
const PHI_TOKENIZER: &str = "microsoft/phi-1_5";

/// Why a model or its tokenizer cannot be found, or do not fit together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelArgsError {
    /// The model cannot be found or fetched.
    #[error(transparent)]
    Model(#[from] WeightsError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] datasets::DataError),
    /// The tokens that end a text cannot be determined.
    #[error(transparent)]
    EndTokens(#[from] EndTokensError),
    /// The token that begins a text cannot be determined.
    #[error(transparent)]
    Beginning(#[from] BeginningError),
    /// Neither the model's folder nor the command line has a tokenizer.
    #[error(
        "{}: no tokenizer.json here; --tokenizer takes such a file, a folder with one, or a name on \
         the hub, such as {PHI_TOKENIZER}, whose tokenizer the published Phi-Mambas use",
        folder.display()
    )]
    NoTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// The model has no tokenizer on the hub, and Phi's cannot be fetched.
    #[error(
        "{} has no tokenizer.json on the hub, and that of {PHI_TOKENIZER} cannot be had: {reason}; \
         --tokenizer names another",
        model.display()
    )]
    PhiTokenizer {
        /// The model's name.
        model: PathBuf,
        /// Why Phi's tokenizer cannot be fetched.
        reason: Box<WeightsError>,
    },
    /// The tokenizer has tokens that the model has no embedding for.
    #[error(
        "{}: the tokenizer has {tokens} tokens, and the vocabulary of {} ends at {vocab_size}; it does not \
         belong to this model",
        tokenizer.display(),
        model.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        tokenizer: PathBuf,
        /// The model.
        model: PathBuf,
        /// The size of the tokenizer's vocabulary.
        tokens: usize,
        /// The size of the model's vocabulary, padding included.
        vocab_size: usize,
    },
}

/// Where a model computes, and in what precision.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ComputeArgs {
    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    ///
    /// cuda: NVIDIA GPUs. wgpu: GPUs through Vulkan, Metal or DirectX 12. flex: the CPU. ndarray: the
    /// CPU, slower, the reference for the others. Which of them this program holds is decided when it
    /// is built, by `--features`. The default is the first of that list that it holds.
    #[arg(long = "backend", value_name = "NAME")]
    named: Option<Backend>,

    /// What parameters are kept in
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Precision,
}

impl ComputeArgs {
    /// The backend that was named, or the preferred one of this build.
    ///
    /// # Errors
    /// [`BackendError::NotBuiltIn`] if this build has none.
    pub fn backend(self) -> Result<Backend, BackendError> {
        let backend = self.named.or_else(Backend::preferred);
        backend.ok_or(BackendError::NotBuiltIn)
    }
}

/// A model, its tokenizer, and where it computes.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// The folder of the model, a GGUF file, or a name on the Hugging Face hub
    ///
    /// A GGUF file has the model's tokenizer inside. A name is OWNER/NAME, as in microsoft/phi-1_5, or for
    /// one GGUF file of several OWNER/NAME:FILE.gguf or the end of the file's name, as in OWNER/NAME:Q4_K_M. Its
    /// files are fetched once, into the cache that Hugging Face's tools share (HF_HOME, HF_HUB_OFFLINE and
    /// HF_ENDPOINT mean what they mean there).
    #[arg(long, value_name = "FOLDER|FILE|OWNER/NAME[:FILE.gguf]")]
    pub model: PathBuf,

    /// A tokenizer.json, a folder with one, a GGUF file, or a name on the hub, in place of the model's own
    ///
    /// A model on the hub that has none, as the published Phi-Mambas, gets that of microsoft/phi-1_5.
    #[arg(long, value_name = "FILE|FOLDER|OWNER/NAME")]
    tokenizer: Option<PathBuf>,

    #[command(flatten)]
    pub compute: ComputeArgs,
}

impl ModelArgs {
    /// The same for a model that another option names.
    pub fn of(model: PathBuf, tokenizer: Option<PathBuf>, compute: ComputeArgs) -> Self {
        Self {
            model,
            tokenizer,
            compute,
        }
    }

    /// Finds the model's folder and its tokenizer, fetching them if need be: the tokenizer that was
    /// named, or the folder's, or Phi's for a Phi-Mamba on the hub that has none. No weights are read.
    ///
    /// # Errors
    /// Every [`ModelArgsError`] but [`Precision`](ModelArgsError::Precision),
    /// [`EndTokens`](ModelArgsError::EndTokens) and [`Vocabulary`](ModelArgsError::Vocabulary).
    pub fn find(&self) -> Result<FoundModel, ModelArgsError> {
        // Before a model is fetched, which may take long.
        let named = self.tokenizer.as_deref().map(tokenizer_at).transpose()?;
        let folder = model::locate(&self.model)?;
        let own = match named {
            Some(tokenizer) => Some(tokenizer),
            None => own_tokenizer(&folder)?,
        };
        // A folder without a model is named as such, and not for the tokenizer that it lacks as well.
        model::load_config(&folder)?;
        let tokenizer = match own {
            Some(tokenizer) => tokenizer,
            // Students of other families need other tokenizers.
            None if self.model.exists() || !is_phi_mamba(&folder)? => {
                return Err(ModelArgsError::NoTokenizer { folder });
            }
            None => {
                let phi = Hub::from_env().and_then(|hub| hub.tokenizer(PHI_TOKENIZER));
                Tokenizer::from_file(phi.map_err(|reason| ModelArgsError::PhiTokenizer {
                    model: self.model.clone(),
                    reason: reason.into(),
                })?)?
            }
        };
        let place = beside(&tokenizer);
        let tokenizer = with_beginning(tokenizer, &place)?;
        Ok(FoundModel {
            folder,
            tokenizer,
            precision: self.compute.dtype,
        })
    }
}

/// Whether the model in `folder` is a Phi-Mamba.
fn is_phi_mamba(folder: &Path) -> Result<bool, ModelArgsError> {
    let config = model::load_config(folder)?;
    Ok(matches!(config, ModelConfig::PhiMamba(_)))
}

/// The tokenizer at `path`, if there is one: a file's, a folder's, or that inside a GGUF file.
pub(crate) fn own_tokenizer(path: &Path) -> Result<Option<Tokenizer>, ModelArgsError> {
    let found = model::tokenizer_json(path)?;
    let read = found.map(|file| Tokenizer::from_json(&file.bytes, file.path));
    Ok(read.transpose()?)
}

/// The place of the files beside a tokenizer: its folder, or the GGUF file that contains it.
fn beside(tokenizer: &Tokenizer) -> PathBuf {
    let path = tokenizer.path();
    if model::is_model(path) {
        return path.into();
    }
    let folder = path.parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).into()
}

fn tokenizer_at(path: &Path) -> Result<Tokenizer, ModelArgsError> {
    if !path.exists() {
        return Ok(Tokenizer::from_file(Hub::from_env()?.tokenizer(path)?)?);
    }
    let folder = path.into();
    own_tokenizer(path)?.ok_or(ModelArgsError::NoTokenizer { folder })
}

/// A model on this machine, not yet loaded.
pub(crate) struct FoundModel {
    /// The folder with its files, or its GGUF file.
    pub folder: PathBuf,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What its parameters are to be kept in.
    pub precision: Precision,
}

impl FoundModel {
    /// The chat template of the model, which is beside its tokenizer, or with it in a GGUF file.
    ///
    /// # Errors
    /// Every [`ChatFileError`].
    pub fn chat_template(&self) -> Result<ChatTemplate, ChatFileError> {
        ChatTemplate::in_folder(&beside(&self.tokenizer))
    }

    /// Loads the model onto `device`.
    ///
    /// # Errors
    /// Every [`PrecisionError`].
    pub fn load<B: KernelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<(ModelConfig, CausalLm<B>), PrecisionError> {
        self.precision.load(&self.folder, device)
    }

    /// Loads the model, and makes the options to generate with it and its tokenizer.
    ///
    /// # Errors
    /// [`ModelArgsError::Precision`], [`ModelArgsError::EndTokens`] and [`ModelArgsError::Vocabulary`].
    pub fn load_to_generate<B: KernelBackend>(
        &self,
        sampling: SamplingSettings,
        max_tokens: usize,
        device: &B::Device,
    ) -> Result<(CausalLm<B>, GenerateOptions), ModelArgsError> {
        // Before gigabytes are read.
        let vocab_size = model::load_config(&self.folder)?.network().vocab_size;
        let end_tokens = EndTokens::of(&self.folder, &self.tokenizer, vocab_size)?;
        let (config, model) = self.load(device)?;
        check_vocabulary(&self.tokenizer, &self.folder, model.vocab_size())?;
        let options = GenerateOptions {
            sampling,
            max_tokens,
            vocab_size: self.tokenizer.vocab_size(),
            end_tokens,
            end_of_text: self.tokenizer.end_of_text(),
            max_positions: config.max_positions(),
        };
        Ok((model, options))
    }
}

/// Checks that `model`, with `vocab_size` embeddings, has one for every token of the tokenizer.
///
/// # Errors
/// [`ModelArgsError::Vocabulary`].
pub(crate) fn check_vocabulary(
    tokenizer: &Tokenizer,
    model: &Path,
    vocab_size: usize,
) -> Result<(), ModelArgsError> {
    let tokens = tokenizer.vocab_size();
    if tokens > vocab_size {
        return Err(ModelArgsError::Vocabulary {
            tokenizer: tokenizer.path().into(),
            model: model.into(),
            tokens,
            vocab_size,
        });
    }
    Ok(())
}

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

#[cfg(test)]
mod tests;
