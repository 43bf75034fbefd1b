//! Turns prompts into token ids: where the context ends and the continuation begins.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use datasets::Tokenizer;
use datasets::probes::Prompt;

use super::error::EvalError;
use super::python::rstrip;

/// Token ids, of which the last `scored` are scored, each given all ids before it.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// A text's ids, which requests of the same text share.
    text: Arc<[u32]>,
    /// The part of the text that this request is about.
    place: Range<usize>,
    /// The number of ids at the end that are scored: at least one, and fewer than there are ids.
    pub scored: usize,
}

impl ScoreRequest {
    /// A request to score the last `scored` of `ids`.
    pub fn new(ids: impl Into<Arc<[u32]>>, scored: usize) -> Self {
        let text = ids.into();
        let place = 0..text.len();
        Self::of_part(text, place, scored)
    }

    /// A request to score the last `scored` ids of the part `place` of `text`.
    pub fn of_part(text: Arc<[u32]>, place: Range<usize>, scored: usize) -> Self {
        Self {
            text,
            place,
            scored,
        }
    }

    /// The ids. The last one is only scored and not read.
    pub fn ids(&self) -> &[u32] {
        &self.text[self.place.clone()]
    }
}

/// Requests are equal if their ids are, even if these are parts of different texts.
impl PartialEq for ScoreRequest {
    fn eq(&self, other: &Self) -> bool {
        self.scored == other.scored && self.ids() == other.ids()
    }
}

impl Eq for ScoreRequest {}

impl Hash for ScoreRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.scored.hash(state);
        self.ids().hash(state);
    }
}

/// One request for each prompt.
///
/// A prompt is encoded whole. Its continuation is what follows the first n tokens, where n is the number
/// of tokens of the context alone; so words are split into tokens as in training, also at the boundary.
/// Blanks at the end of the context belong to the continuation, whose first word begins with them in most
/// vocabularies. A prompt begins with what the tokenizer puts before a prompt; an empty context is the tokenizer's
/// [`prefix`](Tokenizer::prefix) instead. At most `max_length` tokens are read: of longer prompts, the last ones.
///
/// # Errors
/// [`EvalError::NoPrefix`], [`EvalError::NothingToScore`], [`EvalError::TooLong`], and what the
/// tokenizer fails with.
pub fn requests<'p>(
    prompts: impl IntoIterator<Item = &'p Prompt>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Vec<ScoreRequest>, EvalError> {
    let prompts: Vec<&Prompt> = prompts.into_iter().collect();
    // The choices of a question share a context, which is encoded once.
    let mut contexts: Vec<&str> = prompts
        .iter()
        .map(|prompt| rstrip(&prompt.context))
        .collect();
    let of_prompt: Vec<usize> = contexts
        .iter()
        .scan((None, 0), |(last, distinct), &context| {
            if last.replace(context) != Some(context) {
                *distinct += 1;
            }
            Some(*distinct - 1)
        })
        .collect();
    contexts.dedup();
    let wholes: Vec<String> = prompts
        .iter()
        .map(|prompt| format!("{}{}", prompt.context, prompt.continuation))
        .collect();
    let contexts = tokenizer.encode_batch(&contexts)?;
    let wholes = tokenizer.encode_batch(&wholes)?;

    let of_prompt = of_prompt.iter().map(|&i| &contexts[i]);
    prompts
        .iter()
        .zip(of_prompt.zip(wholes))
        .map(|(prompt, (context, whole))| {
            let begin: &[u32] = if prompt.context.is_empty() {
                &[]
            } else {
                tokenizer.begin()
            };
            let [context, whole] = [context, &whole].map(|ids| [begin, ids].concat());
            let request = request(&context, &whole, tokenizer.prefix(), max_length)?;
            request.ok_or_else(|| EvalError::NothingToScore {
                continuation: prompt.continuation.clone(),
            })
        })
        .collect()
}

/// The request of one prompt, from the ids of its context and of the whole. `None` if no id is left to score.
fn request(
    context: &[u32],
    whole: &[u32],
    prefix: Option<u32>,
    max_length: usize,
) -> Result<Option<ScoreRequest>, EvalError> {
    // Without a context, the text follows the token that precedes documents in training.
    let before = [prefix.unwrap_or_default()];
    let (context, continuation) = match context {
        [] if prefix.is_none() => return Err(EvalError::NoPrefix),
        [] if whole.first() == before.first() => whole.split_at(1),
        [] => (&before[..], whole),
        context => (context, whole.get(context.len()..).unwrap_or_default()),
    };
    let scored = continuation.len();
    if scored == 0 {
        return Ok(None);
    }
    if scored > max_length {
        return Err(EvalError::TooLong {
            tokens: scored,
            limit: max_length,
        });
    }
    // The last token is not read.
    let too_many = (context.len() + scored).saturating_sub(max_length.saturating_add(1));
    let ids = [&context[too_many.min(context.len())..], continuation].concat();
    Ok(Some(ScoreRequest::new(ids, scored)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 0;

    fn made(context: &[u32], whole: &[u32], max_length: usize) -> (Vec<u32>, usize) {
        let request = request(context, whole, Some(END), max_length);
        let request = request.unwrap().unwrap();
        (request.ids().to_vec(), request.scored)
    }

    #[test]
    fn the_continuation_is_what_lies_beyond_the_context() {
        assert_eq!(made(&[1, 2], &[1, 2, 3, 4], 9), (vec![1, 2, 3, 4], 2));
        // The tokens of the separately encoded context are read, even if the encoded whole joins tokens at the
        // boundary.
        assert_eq!(made(&[1, 2], &[1, 7, 3, 4], 9), (vec![1, 2, 3, 4], 2));
        assert_eq!(request(&[1, 2], &[1, 7], Some(END), 9).unwrap(), None);
    }

    /// As in the harness, a begin-of-text stands before every context, and the prefix is an empty one.
    #[test]
    fn prompts_begin_with_what_the_tokenizer_puts_there() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let plain = Tokenizer::from_folder(folder).unwrap();
        let prompt = |context: &str| Prompt {
            context: context.into(),
            continuation: " best of times".into(),
        };
        let prompts = ["It was the", "", "It was the "].map(prompt);
        let ids = |tokenizer: &Tokenizer| -> Vec<Vec<u32>> {
            let requests = requests(&prompts, tokenizer, 99).unwrap();
            let ids = requests.iter().map(|request| request.ids().to_vec());
            ids.collect()
        };
        let without = ids(&plain);
        assert_eq!(without[1][0], plain.end_of_text().unwrap());
        let with = ids(&plain.with_beginning(vec![7], Some(5)));
        for i in [0, 2] {
            assert_eq!(with[i], [&[7][..], &without[i][..]].concat());
        }
        assert_eq!(with[1], [&[5][..], &without[1][1..]].concat());
    }

    #[test]
    fn an_empty_context_is_the_end_of_another_text() {
        assert_eq!(made(&[], &[3, 4], 9), (vec![END, 3, 4], 2));
        assert_eq!(made(&[], &[END, 4], 9), (vec![END, 4], 1));
        assert!(matches!(
            request(&[], &[3], None, 9),
            Err(EvalError::NoPrefix)
        ));
    }

    #[test]
    fn too_much_is_cut_at_the_left() {
        // Four tokens are read and the fifth is only scored.
        let all = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(made(&[1, 2, 3], &all[..5], 4), (vec![1, 2, 3, 4, 5], 2));
        assert_eq!(made(&[1, 2, 3], &all, 4), (vec![3, 4, 5, 6, 7], 4));
        assert_eq!(made(&[1, 2, 3], &all, usize::MAX), (all.to_vec(), 4));
        let long = request(&[1, 2, 3], &all, Some(END), 3);
        let Err(EvalError::TooLong { tokens, limit }) = long else {
            panic!("{long:?}")
        };
        assert_eq!((tokens, limit), (4, 3));
    }
}
