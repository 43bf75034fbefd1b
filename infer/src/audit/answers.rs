//! Answers that a model writes itself, token by token, always the likeliest token.

use std::cmp::Reverse;

use burn::tensor::{Int, Tensor, TensorData};
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::runtime::{BackendError, synchronise};
use model::CausalLm;
use rayon::prelude::*;

use super::measure::Reader;
use crate::eval::{Document, EvalError, Question};

/// The most tokens of an answer.
const MOST: usize = 16;

/// The most words of a right answer that counts as short.
const SHORT: usize = 3;

/// A prompt and its right answer.
#[derive(Debug)]
pub struct Answer {
    prompt: Vec<u32>,
    /// In the form of [`words`].
    right: Vec<String>,
    /// Whether the answer is the first word of the text; otherwise it is the first line.
    is_word: bool,
}

impl Answer {
    /// The prompt and the answer for a document with one word to find, or with choices of which the right one is short;
    /// the prompt contains no choices. `None` for other documents.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    pub fn of(
        document: &Document,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Option<Self>, EvalError> {
        let (i, is_word) = match &document.question {
            Question::Word => (0, true),
            Question::Choice { gold, .. } => (*gold, false),
            _ => return Ok(None),
        };
        let prompt = &document.prompts[i];
        let right = words(&prompt.continuation);
        if right.is_empty() || right.len() > SHORT {
            return Ok(None);
        }
        let ids = tokenizer.encode_prompt(prompt.context.trim_end())?;
        let room = max_length.saturating_sub(MOST).max(1);
        let prompt = ids[ids.len().saturating_sub(room)..].to_vec();
        let answer = Self {
            prompt,
            right,
            is_word,
        };
        Ok((!answer.prompt.is_empty()).then_some(answer))
    }

    /// The most tokens that are read at once. The last token that the model makes is not read.
    pub fn longest(&self) -> usize {
        self.prompt.len() + MOST - 1
    }

    /// The part of the text after the prompt that is compared: its first word or its first line.
    fn part<'t>(&self, text: &'t str) -> &'t str {
        let text = text.trim_start();
        let end = |c: char| c == '\n' || self.is_word && c.is_whitespace();
        text.split(end).next().unwrap_or_default()
    }

    /// Whether more text cannot change that part.
    fn is_whole(&self, text: &str) -> bool {
        self.part(text).len() < text.trim_start().len()
    }

    /// Whether the answer in this text begins with the right one.
    fn is_right(&self, text: &str) -> bool {
        let made = words(self.part(text));
        made.starts_with(&self.right)
    }
}

/// The words of a text in small letters, without punctuation and articles.
fn words(text: &str) -> Vec<String> {
    let small = text.to_lowercase();
    let words = small.split(|c: char| !c.is_alphanumeric() && c != '\'');
    let words = words.map(|word| word.trim_matches('\''));
    let words = words.filter(|word| !["", "a", "an", "the"].contains(word));
    words.map(str::to_owned).collect()
}

/// For each of the answers, whether the model gives it.
///
/// For each token the whole text is read again. For a few tokens after prompts of different lengths, that is one pass
/// over a batch, and it works with every control of the model.
///
/// # Errors
/// [`EvalError::Device`], and what the tokenizer fails with.
pub fn answers<B: KernelBackend>(
    model: &CausalLm<B>,
    answers: &[&Answer],
    reader: &Reader<'_, B>,
) -> Result<Vec<bool>, EvalError> {
    let mut longest_first: Vec<usize> = (0..answers.len()).collect();
    longest_first.sort_by_key(|&i| Reverse(answers[i].prompt.len()));
    let batches: Vec<&[usize]> = longest_first.chunks(reader.batch_size.max(1)).collect();
    let mut right = vec![false; answers.len()];
    for side_by_side in batches.chunks(B::lanes()) {
        let made = |batch: &&[usize]| {
            let batch: Vec<&Answer> = batch.iter().map(|&i| answers[i]).collect();
            texts(model, &batch, reader)
        };
        let made: Vec<_> = match side_by_side {
            [one] => vec![made(one)],
            several => several.par_iter().map(made).collect(),
        };
        synchronise::<B>(reader.device)?;
        for (batch, texts) in side_by_side.iter().zip(made) {
            for (&i, text) in batch.iter().zip(texts?) {
                right[i] = answers[i].is_right(&text);
            }
        }
    }
    Ok(right)
}

/// The texts that the model writes after the prompts of one batch.
fn texts<B: KernelBackend>(
    model: &CausalLm<B>,
    batch: &[&Answer],
    reader: &Reader<'_, B>,
) -> Result<Vec<String>, EvalError> {
    let mut ids: Vec<Vec<u32>> = batch.iter().map(|answer| answer.prompt.clone()).collect();
    let mut texts = vec![String::new(); batch.len()];
    let mut open: Vec<usize> = (0..batch.len()).collect();
    for _ in 0..MOST {
        let rows: Vec<&[u32]> = open.iter().map(|&i| &ids[i][..]).collect();
        let next = likeliest(model, &rows, reader)?;
        let mut still_open = vec![];
        for (&i, id) in open.iter().zip(next) {
            if Some(id) == reader.tokenizer.end_of_text() {
                continue;
            }
            ids[i].push(id);
            texts[i] = reader.tokenizer.decode(&ids[i][batch[i].prompt.len()..])?;
            if !batch[i].is_whole(&texts[i]) {
                still_open.push(i);
            }
        }
        open = still_open;
        if open.is_empty() {
            break;
        }
    }
    Ok(texts)
}

/// The likeliest token after each row, among those that the tokenizer has.
fn likeliest<B: KernelBackend>(
    model: &CausalLm<B>,
    rows: &[&[u32]],
    reader: &Reader<'_, B>,
) -> Result<Vec<u32>, EvalError> {
    let b = rows.len();
    let l = rows.iter().map(|row| row.len()).max().unwrap_or_default();
    let mut ids = vec![0; b * l];
    let mut last = Vec::with_capacity(b);
    for (i, row) in rows.iter().enumerate() {
        for (id, &read) in ids[i * l..].iter_mut().zip(*row) {
            *id = read as i32;
        }
        last.push((i * l + row.len() - 1) as i32);
    }
    let ids_bl = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [b, l]), reader.device);
    let last_b = Tensor::<B, 1, Int>::from_data(TensorData::new(last, [b]), reader.device);
    let x_bld = model.features(ids_bl);
    let d = x_bld.dims()[2];
    let x_bd = x_bld.reshape([b * l, d]).select(0, last_b);
    let logits_1bv = model.logits(x_bd.reshape([1, b, d]));
    let v = logits_1bv.dims()[2].min(reader.tokenizer.vocab_size());
    let likeliest = logits_1bv.narrow(2, 0, v).argmax(2);
    let data = likeliest.try_into_data().map_err(|error| {
        EvalError::Device(BackendError::Failed {
            reason: error.to_string(),
        })
    })?;
    Ok(data.iter::<i64>().map(|id| id as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(right: &str, is_word: bool) -> Answer {
        Answer {
            prompt: vec![1],
            right: words(right),
            is_word,
        }
    }

    #[test]
    fn a_word_ends_at_a_blank() {
        let word = answer(" lantern", true);
        for (text, is_whole, is_right) in [
            (" lan", false, false),
            (" lantern", false, true),
            (" lantern.", false, true),
            (" \"Lantern,\" he", true, true),
            (" lanterns and", true, false),
            (" old lantern", true, false),
            ("\nlantern", false, true),
        ] {
            assert_eq!(word.is_whole(text), is_whole, "{text:?}");
            assert_eq!(word.is_right(text), is_right, "{text:?}");
        }
    }

    #[test]
    fn a_short_answer_begins_its_line() {
        let short = answer(" the North Pole", false);
        for (text, is_whole, is_right) in [
            (" North Pole", false, true),
            (" At the North Pole", false, false),
            (" the north pole, of course.\nQuestion", true, true),
            (" the north\npole", true, false),
        ] {
            assert_eq!(short.is_whole(text), is_whole, "{text:?}");
            assert_eq!(short.is_right(text), is_right, "{text:?}");
        }
    }

    #[test]
    fn long_choices_and_probes_have_no_short_answer() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let tokenizer = Tokenizer::from_folder(folder).unwrap();
        let document = |continuation: &str, question| Document {
            prompts: vec![crate::eval::Prompt {
                context: "Question: Where is it cold?\nAnswer:".into(),
                continuation: continuation.into(),
            }],
            question,
        };
        let choice = || Question::Choice {
            gold: 0,
            choices: vec!["a".into()],
        };
        let of = |continuation, question| {
            Answer::of(&document(continuation, question), &tokenizer, 20).unwrap()
        };
        let short = of(" the North Pole", choice()).unwrap();
        assert_eq!(short.right, ["north", "pole"]);
        // The prompt is cut at its beginning, so that there is room for an answer.
        assert_eq!(short.prompt.len(), 4);
        assert!(of(" on a cold winter's day", choice()).is_none());
        assert!(of(" ...", choice()).is_none());
        assert!(of(" 1234", Question::Fact { length: 256 }).is_none());
        assert!(of(" pole", Question::Word).unwrap().is_word);
    }
}
