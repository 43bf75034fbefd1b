//! What the probes share: documents of a given number of tokens, which are made here, by any tokenizer.

use datasets::Tokenizer;
use rayon::prelude::*;

use super::error::EvalError;
use super::task::{Document, Prompt, Task};
use super::words::Draw;

/// The lengths of documents in tokens, of those that a model reads at once.
pub const LENGTHS: [usize; 4] = [256, 512, 1024, 2048];

/// The documents of each length.
pub const DOCUMENTS: usize = 100;

/// Of all draws, unless another is given.
pub const SEED: u32 = 2024;

/// Which documents of a probe are made.
#[derive(Clone, Debug)]
pub struct ProbeSizes {
    /// Their lengths, in tokens.
    pub lengths: Vec<usize>,
    /// Documents of each length.
    pub documents: usize,
    /// Of all draws.
    pub seed: u32,
}

impl ProbeSizes {
    /// Those of `LENGTHS` up to `max_length`, at most `limit` documents of each.
    ///
    /// # Errors
    /// [`EvalError::TooShort`] if not even the smallest length can be read.
    pub fn up_to(task: Task, max_length: usize, limit: Option<usize>) -> Result<Self, EvalError> {
        let lengths = LENGTHS.into_iter().filter(|length| *length <= max_length);
        let lengths: Vec<usize> = lengths.collect();
        if lengths.is_empty() {
            return Err(EvalError::TooShort {
                task,
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

/// Makes the documents of these sizes. `document` makes one: it gets the length and the random draws.
/// Document `i` of a length is the same whatever the number of documents and the other lengths.
///
/// # Errors
/// Those of `document`.
pub fn documents(
    sizes: &ProbeSizes,
    document: impl Fn(usize, Draw) -> Result<Document, EvalError> + Sync,
) -> Result<Vec<Document>, EvalError> {
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
/// [`EvalError::NoRoom`] if not even one unit fits, and what the tokenizer fails with.
pub fn filled(
    task: Task,
    tokenizer: &Tokenizer,
    length: usize,
    most: usize,
    prompt: impl Fn(usize) -> Prompt,
) -> Result<(usize, Prompt), EvalError> {
    let fits = |units| -> Result<bool, EvalError> {
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
        return Err(EvalError::NoRoom { task, length });
    }
    Ok((units, prompt(units)))
}
