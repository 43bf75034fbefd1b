//! How a model performs on the documents of a measure.

use std::collections::HashMap;

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;

use super::answers::{Answer, answers};
use crate::eval::{
    EvalError, Question, Score, ScoreRequest, Task, TokenScore, is_right, is_right_by_length,
    score_tokens,
};

/// Documents that every model reads.
#[derive(Debug)]
pub struct Measure {
    /// Such as `needle at 512`.
    pub name: String,
    /// What it measures.
    pub kind: Kind,
    /// What is read.
    pub documents: Vec<Reading>,
}

/// The kind of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Running text in windows of so many tokens.
    Text {
        /// The tokens of a window.
        context: usize,
    },
    /// A task of the paper, by likelihoods.
    Task(Task),
    /// A task whose answers the model writes token by token.
    Answers(Task),
    /// A probe, in documents of one length.
    Recall {
        /// The probe.
        task: Task,
        /// The most tokens of a document.
        length: usize,
    },
}

/// A document.
#[derive(Debug)]
pub enum Reading {
    /// Each token that is scored is an item.
    Text(ScoreRequest),
    /// A question: of a task, it is one item; of a probe, it has several items.
    Question {
        /// How scores are judged.
        question: Question,
        /// The requests of its prompts.
        requests: Vec<ScoreRequest>,
        /// Whether likelihoods are compared per character.
        by_length: bool,
    },
    /// The answer that the model writes after a prompt is one item.
    Answer(Answer),
}

/// The results of a model on one document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// One number for each item: a log-likelihood, or 1 if it is right and 0 if it is wrong.
    pub items: Vec<f64>,
    /// Only for `copy`, its floor: the same items where the words come for the first time, so that the model cannot
    /// know them. Otherwise empty.
    pub floor: Vec<f64>,
}

/// What all models read with.
pub struct Reader<'a, B: KernelBackend> {
    /// The teacher's tokenizer, which all models use.
    pub tokenizer: &'a Tokenizer,
    /// Documents in a batch.
    pub batch_size: usize,
    /// Where the models are.
    pub device: &'a B::Device,
}

impl Measure {
    /// The results of `model` on each document.
    ///
    /// # Errors
    /// The errors of [`score_tokens`] and of the tokenizer.
    pub fn run<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        reader: &Reader<'_, B>,
    ) -> Result<Vec<Outcome>, EvalError> {
        let of = self.documents.iter().filter_map(|reading| match reading {
            Reading::Answer(answer) => Some(answer),
            _ => None,
        });
        let of: Vec<&Answer> = of.collect();
        let mut right = answers(model, &of, reader)?.into_iter();

        let passes: Vec<Vec<ScoreRequest>> = self
            .documents
            .iter()
            .map(|reading| passes(reading.requests()))
            .collect();
        let all: Vec<&ScoreRequest> = passes.iter().flatten().collect();
        let mut scores = HashMap::new();
        let (b, device) = (reader.batch_size, reader.device);
        score_tokens(model, &all, b, device, |request, tokens| {
            scores.insert(request.clone(), tokens);
        })?;
        let both = self.documents.iter().zip(&passes);
        let outcomes = both.map(|(reading, passes)| match reading {
            Reading::Answer(_) => Outcome::of([right.next().unwrap_or_default()]),
            _ => reading.outcome(|request| part(request, passes, &scores)),
        });
        Ok(outcomes.collect())
    }
}

impl Reading {
    fn requests(&self) -> &[ScoreRequest] {
        match self {
            Self::Text(request) => std::slice::from_ref(request),
            Self::Question { requests, .. } => requests,
            Self::Answer(_) => &[],
        }
    }

    /// The most tokens that are read at once.
    pub fn longest(&self) -> usize {
        if let Self::Answer(answer) = self {
            return answer.longest();
        }
        // The last id of a request is not read.
        let requests = self.requests().iter();
        let longest = requests.map(|request| request.ids().len() - 1).max();
        longest.unwrap_or_default()
    }

    /// The results, computed from the scores of the tokens of each request.
    fn outcome<'s>(&self, scores: impl Fn(&ScoreRequest) -> &'s [TokenScore]) -> Outcome {
        let greedy = |request: &ScoreRequest| scores(request).iter().map(|token| token.is_greedy);
        match self {
            Self::Text(request) => Outcome {
                items: scores(request).iter().map(|t| t.log_likelihood).collect(),
                floor: vec![],
            },
            Self::Question {
                question: Question::Repetition { .. },
                requests,
                ..
            } => Outcome {
                floor: greedy(&requests[1]).map(share).collect(),
                ..Outcome::of(greedy(&requests[0]))
            },
            Self::Question {
                question,
                requests,
                by_length,
            } => {
                let scores: Vec<Score> = (requests.iter())
                    .map(|request| Score::of(scores(request)))
                    .collect();
                let one = if *by_length {
                    is_right_by_length(question, &scores)
                } else {
                    is_right(question, &scores)
                };
                match one {
                    Some(one) => Outcome::of([one]),
                    None => Outcome::of(scores.iter().map(Score::is_greedy)),
                }
            }
            Self::Answer(_) => Outcome::default(),
        }
    }
}

impl Outcome {
    fn of(right: impl IntoIterator<Item = bool>) -> Self {
        Self {
            items: right.into_iter().map(share).collect(),
            floor: vec![],
        }
    }
}

fn share(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
}

/// The fewest requests that give the scores of all: a request whose ids are the beginning of another's is scored there.
fn passes(requests: &[ScoreRequest]) -> Vec<ScoreRequest> {
    let mut longest_first: Vec<&ScoreRequest> = requests.iter().collect();
    longest_first.sort_by_key(|request| std::cmp::Reverse(request.ids().len()));
    let mut passes: Vec<ScoreRequest> = Vec::new();
    for request in longest_first {
        let whole = passes
            .iter_mut()
            .find(|pass| pass.ids().starts_with(request.ids()));
        match whole {
            Some(pass) => {
                let first = request.ids().len() - request.scored;
                pass.scored = pass.scored.max(pass.ids().len() - first);
            }
            None => passes.push(request.clone()),
        }
    }
    passes
}

/// The scores of `request`, from those of the pass that it is a part of.
fn part<'s>(
    request: &ScoreRequest,
    passes: &[ScoreRequest],
    scores: &'s HashMap<ScoreRequest, Vec<TokenScore>>,
) -> &'s [TokenScore] {
    let first = request.ids().len() - request.scored;
    let found = passes.iter().find_map(|pass| {
        let before = pass.ids().len() - pass.scored;
        let is_in = pass.ids().starts_with(request.ids()) && before <= first;
        let at = first.wrapping_sub(before);
        is_in.then(|| scores.get(pass)?.get(at..at + request.scored))?
    });
    found.expect("each request is in a pass, and each pass is scored")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_another_is_scored_there() {
        let short = ScoreRequest::new([1, 2, 3], 1);
        let long = ScoreRequest::new([1, 2, 3, 4, 5, 6], 2);
        let other = ScoreRequest::new([1, 3, 3, 4], 2);
        let requests = [short.clone(), long.clone(), other.clone()];
        let passes = passes(&requests);
        let whole = ScoreRequest::new([1, 2, 3, 4, 5, 6], 4);
        assert_eq!(passes, [whole.clone(), other.clone()]);
        let scored = |ids: &[u32]| {
            let score = |&id: &u32| TokenScore {
                log_likelihood: f64::from(id),
                is_greedy: false,
            };
            ids.iter().map(score).collect::<Vec<_>>()
        };
        let scores = HashMap::from([
            (whole, scored(&[3, 4, 5, 6])),
            (other.clone(), scored(&[3, 4])),
        ]);
        for (request, expected) in [(short, vec![3]), (long, vec![5, 6]), (other, vec![3, 4])] {
            assert_eq!(part(&request, &passes, &scores), scored(&expected));
        }
    }

    #[test]
    fn a_copy_has_the_floor_of_its_tokens() {
        let [again, first] = [
            ScoreRequest::new([1, 2, 9, 1, 2], 2),
            ScoreRequest::new([1, 2], 1),
        ];
        let reading = Reading::Question {
            question: Question::Repetition { length: 5 },
            requests: vec![again.clone(), first],
            by_length: false,
        };
        let token = |is_greedy| TokenScore {
            log_likelihood: -1.0,
            is_greedy,
        };
        let (of_again, of_first) = ([token(true), token(false)], [token(false), token(true)]);
        let outcome = reading.outcome(|request| {
            if *request == again {
                &of_again
            } else {
                &of_first
            }
        });
        assert_eq!(
            (outcome.items, outcome.floor),
            (vec![1.0, 0.0], vec![0.0, 1.0])
        );
    }
}
