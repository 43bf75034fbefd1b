//! Probes of recall: documents of a given number of tokens that contain facts and then ask for them. They are generated
//! from a seed, for any tokenizer.
//!
//! `infer eval` and `infer audit` measure models with them, `train heads` finds the attention heads that are needed for
//! them, and [`RecallText`] makes training text from them.

mod copying;
mod mqar;
mod needle;
mod text;
mod words;

use std::fmt;

use rayon::prelude::*;

use crate::error::DataError;
use crate::tokenizer::Tokenizer;

pub use text::RecallText;
use words::Draw;
pub use words::random;

/// The kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// One fact of a long text.
    Needle,
    /// Several facts of a long text.
    Needles,
    /// A passage of words given twice.
    Copy,
    /// Pairs of a key and a value, and some of the keys again.
    Mqar,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Needle => "needle",
            Self::Needles => "needles",
            Self::Copy => "copy",
            Self::Mqar => "mqar",
        })
    }
}

/// A continuation whose likelihood after a context is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text that is read before; may be empty.
    pub context: String,
    /// The text that is scored.
    pub continuation: String,
}

/// A document of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeDocument {
    /// The prompts that are scored. For [`Probe::Copy`] there are two: the second occurrence of the passage, and then
    /// the first one, which serves for comparison. For the other probes there is one prompt for each question; each
    /// begins with the previous prompt and its answer.
    pub prompts: Vec<Prompt>,
    /// The most tokens of the document.
    pub length: usize,
}

/// Why the documents of a probe cannot be made. Each message is complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Fewer tokens at once than the shortest document has.
    #[error("{probe} needs at least {least} tokens at once, and there are {max_length}")]
    TooShort {
        /// The probe.
        probe: Probe,
        /// The length of its shortest documents.
        least: usize,
        /// The most tokens that are read.
        max_length: usize,
    },
    /// A tokenizer that makes so many tokens of a probe's question that there is no text around it.
    #[error("{length} tokens of this tokenizer are too few for a document of {probe}")]
    NoRoom {
        /// The probe.
        probe: Probe,
        /// The most tokens of the document.
        length: usize,
    },
    /// A probe whose documents cannot be so long.
    #[error("{probe} has too few different keys for a document of {length} tokens")]
    TooMuchRoom {
        /// The probe.
        probe: Probe,
        /// The most tokens of the document.
        length: usize,
    },
    /// A continuation without a token: its letters are part of the context's last token.
    #[error(
        "nothing is left to score of {continuation:?}: its letters join a token of what is before"
    )]
    NothingToScore {
        /// The continuation.
        continuation: String,
    },
    /// The tokenizer fails.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// The lengths of documents in tokens, of those that a model reads at once.
pub const LENGTHS: [usize; 4] = [256, 512, 1024, 2048];

/// The documents of each length.
pub const DOCUMENTS: usize = 100;

/// The default seed of all draws.
pub const SEED: u32 = 2024;

/// Which documents of a probe are made.
#[derive(Clone, Debug)]
pub struct ProbeSizes {
    /// Their lengths, in tokens.
    pub lengths: Vec<usize>,
    /// Documents of each length.
    pub documents: usize,
    /// The seed of all draws.
    pub seed: u32,
}

impl ProbeSizes {
    /// Those of `LENGTHS` up to `max_length`, at most `limit` documents of each.
    ///
    /// # Errors
    /// [`ProbeError::TooShort`] if not even the smallest length can be read.
    pub fn up_to(
        probe: Probe,
        max_length: usize,
        limit: Option<usize>,
    ) -> Result<Self, ProbeError> {
        let lengths = LENGTHS.into_iter().filter(|length| *length <= max_length);
        let lengths: Vec<usize> = lengths.collect();
        if lengths.is_empty() {
            return Err(ProbeError::TooShort {
                probe,
                least: LENGTHS[0],
                max_length,
            });
        }
        Ok(Self {
            lengths,
            documents: limit.unwrap_or(DOCUMENTS).min(DOCUMENTS),
            seed: SEED,
        })
    }
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Needle, Self::Needles, Self::Copy, Self::Mqar];

    /// The probe with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|probe| probe.to_string() == name)
    }

    /// Makes the documents of these sizes, one length after the other.
    ///
    /// # Errors
    /// [`ProbeError::NoRoom`], [`ProbeError::TooMuchRoom`], and what the tokenizer fails with.
    pub fn documents(
        self,
        tokenizer: &Tokenizer,
        sizes: &ProbeSizes,
    ) -> Result<Vec<ProbeDocument>, ProbeError> {
        documents(sizes, |length, draw| self.document(tokenizer, length, draw))
    }

    /// Makes one document.
    fn document(
        self,
        tokenizer: &Tokenizer,
        length: usize,
        draw: Draw,
    ) -> Result<ProbeDocument, ProbeError> {
        match self {
            Self::Needle => needle::make(&needle::ONE, tokenizer, length, draw),
            Self::Needles => needle::make(&needle::SEVERAL, tokenizer, length, draw),
            Self::Copy => copying::make(tokenizer, length, draw),
            Self::Mqar => mqar::make(tokenizer, length, draw),
        }
    }

    /// Makes the text of a document to train on, with its answers. It asks for more than a document that is measured.
    fn practice(
        self,
        tokenizer: &Tokenizer,
        length: usize,
        draw: Draw,
    ) -> Result<String, ProbeError> {
        match self {
            Self::Needle => needle::practice(&needle::ONE, tokenizer, length, draw),
            Self::Needles => needle::practice(&needle::SEVERAL, tokenizer, length, draw),
            Self::Copy => copying::practice(tokenizer, length, draw),
            Self::Mqar => mqar::practice(tokenizer, length, draw),
        }
    }
}

/// Token ids, of which the last `scored` are the continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All ids.
    pub ids: Vec<u32>,
    /// At least one, and fewer than there are ids.
    pub scored: usize,
}

/// The ids of a prompt with a context. It is encoded whole, behind what the tokenizer puts before a prompt; the
/// continuation is what follows as many tokens as the context alone has.
///
/// # Errors
/// [`ProbeError::NothingToScore`], and what the tokenizer fails with.
pub fn encoded(tokenizer: &Tokenizer, prompt: &Prompt) -> Result<Encoded, ProbeError> {
    let Prompt {
        context,
        continuation,
    } = prompt;
    let mut ids = tokenizer.encode_prompt(context.trim_end())?;
    let whole = tokenizer.encode_prompt(&format!("{context}{continuation}"))?;
    let rest = whole.get(ids.len()..).unwrap_or_default();
    if rest.is_empty() || ids.is_empty() {
        return Err(ProbeError::NothingToScore {
            continuation: continuation.clone(),
        });
    }
    ids.extend(rest);
    Ok(Encoded {
        ids,
        scored: rest.len(),
    })
}

/// Makes the documents of these sizes. `document` makes one: it gets the length and the random draws.
/// Document `i` of a length is the same whatever the number of documents and the other lengths.
///
/// # Errors
/// Those of `document`.
fn documents(
    sizes: &ProbeSizes,
    document: impl Fn(usize, Draw) -> Result<ProbeDocument, ProbeError> + Sync,
) -> Result<Vec<ProbeDocument>, ProbeError> {
    let lengths = sizes.lengths.iter();
    let each = lengths.flat_map(|&length| (0..sizes.documents).map(move |i| (length, i)));
    let each: Vec<(usize, usize)> = each.collect();
    let made = each
        .par_iter()
        .map(|&(length, i)| document(length, Draw::new([sizes.seed, length as u32, i as u32])));
    made.collect()
}

/// The prompt with the most of the `most` units that can fill it, with which it has at most `length` tokens.
/// `prompt` makes it with so many; more units are more tokens.
///
/// # Errors
/// [`ProbeError::NoRoom`] if not even one unit fits, and what the tokenizer fails with.
fn filled(
    probe: Probe,
    tokenizer: &Tokenizer,
    length: usize,
    most: usize,
    prompt: impl Fn(usize) -> Prompt,
) -> Result<(usize, Prompt), ProbeError> {
    let fits = |units| -> Result<bool, ProbeError> {
        let Prompt {
            context,
            continuation,
        } = prompt(units);
        let ids = tokenizer.encode_prompt(&(context + &continuation))?;
        Ok(ids.len() <= length)
    };
    let (mut units, mut too_many) = (0, most + 1);
    while too_many - units > 1 {
        let middle = units.midpoint(too_many);
        if fits(middle)? {
            units = middle;
        } else {
            too_many = middle;
        }
    }
    if units == 0 {
        return Err(ProbeError::NoRoom { probe, length });
    }
    Ok((units, prompt(units)))
}
