//! The plan of an audit: the documents that every model reads, made once.

use std::path::PathBuf;

use datasets::{Documents, Tokenizer, source_files};

use super::AuditError;
use super::answers::Answer;
use super::measure::{Kind, Measure, Reading};
use crate::eval::{
    DOCUMENTS, Document, EvalError, LENGTHS, ProbeSizes, Question, ScoreRequest, Task, requests,
};

/// The contexts in which running text is read, if the models allow them.
const CONTEXTS: [usize; 2] = [512, 2048];

/// Windows of the longest context, unless a limit is given.
const WINDOWS: usize = 32;

/// The longest documents of probes, unless lengths are given. In longer documents a small teacher spends most of its
/// operations on attention, whose share grows with the length.
const LONGEST_PROBE: usize = 8192;

/// The fewest documents of a probe for each length, unless a limit is given.
const FEWEST: usize = 16;

/// What to measure.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Running text.
    pub text: Vec<PathBuf>,
    /// A folder with the data of tasks.
    pub data: Option<PathBuf>,
    /// Tasks and probes; all of them if there are none.
    pub tasks: Vec<Task>,
    /// The most documents of each measure.
    pub limit: Option<usize>,
    /// Lengths of the probes' documents; if empty, 256 and its doubles, up to the models' context and at most 8192.
    pub lengths: Vec<usize>,
    /// The seed of the probes' random draws.
    pub seed: u32,
}

/// What is measured.
#[derive(Debug)]
pub struct Plan {
    /// In the order of the table.
    pub measures: Vec<Measure>,
    /// What cannot be measured, a line each.
    pub left_out: Vec<String>,
    /// The options that the plan was made from.
    pub options: PlanOptions,
    /// The most tokens that are read at once.
    pub max_length: usize,
}

/// Makes the documents of every measure, for models that read at most `max_length` tokens of `tokenizer` at once. Tasks
/// without data are left out, and so are probes in lengths that are too short for them.
///
/// # Errors
/// [`AuditError::Nothing`], which says what was left out, if nothing remains, and [`AuditError::Eval`].
pub fn plan(
    options: &PlanOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Plan, AuditError> {
    let mut plan = Plan {
        measures: vec![],
        left_out: vec![],
        options: options.clone(),
        max_length,
    };
    plan.add_text(tokenizer)?;
    let of_the_paper = Task::OF_THE_PAPER.into_iter();
    let of_the_paper: Vec<Task> = of_the_paper.filter(|task| plan.has(*task)).collect();
    if !of_the_paper.is_empty() && options.data.is_none() {
        let line = "the tasks are left out: --data names no folder with their data";
        plan.left_out.push(line.into());
    } else {
        let mut answers = vec![];
        for task in of_the_paper {
            answers.extend(plan.add_task(task, tokenizer)?);
        }
        plan.measures.extend(answers);
    }
    let probes = Task::PROBES.into_iter();
    let probes: Vec<Task> = probes.filter(|task| plan.has(*task)).collect();
    for task in &probes {
        plan.add_probe(*task, tokenizer)?;
    }
    let could_be_longer = options.lengths.is_empty() && max_length >= 2 * LONGEST_PROBE;
    if could_be_longer && !probes.is_empty() {
        plan.left_out.push(format!(
            "probes longer than {LONGEST_PROBE} tokens are left out, though {max_length} are read at once: --lengths \
             names more"
        ));
    }
    if plan.measures.is_empty() {
        let left_out = plan.left_out;
        return Err(AuditError::Nothing { left_out });
    }
    Ok(plan)
}

impl Plan {
    /// The most tokens that a model reads at once.
    pub fn longest(&self) -> usize {
        let all = self.measures.iter().flat_map(|measure| &measure.documents);
        all.map(Reading::longest).max().unwrap_or_default()
    }

    fn has(&self, task: Task) -> bool {
        self.options.tasks.is_empty() || self.options.tasks.contains(&task)
    }

    /// Adds perplexity in each context, over the same tokens.
    fn add_text(&mut self, tokenizer: &Tokenizer) -> Result<(), EvalError> {
        if self.options.text.is_empty() {
            let line = "perplexity is left out: --text names no text";
            self.left_out.push(line.into());
            return Ok(());
        }
        let contexts = CONTEXTS.into_iter().filter(|c| *c <= self.max_length);
        let mut contexts: Vec<usize> = contexts.collect();
        if contexts.is_empty() {
            contexts.push(self.max_length);
        }
        let longest = contexts[contexts.len() - 1];
        let windows = self.options.limit.unwrap_or(WINDOWS);
        let ids = stream(
            &self.options.text,
            tokenizer,
            windows.saturating_mul(longest),
        )?;
        let windows = ids.len().saturating_sub(1) / longest;
        if windows == 0 {
            self.left_out.push(format!(
                "perplexity is left out: the text has {} tokens, which is less than a window of {longest} and the \
                 token after it",
                ids.len()
            ));
            return Ok(());
        }
        let text: std::sync::Arc<[u32]> = ids.into();
        for context in contexts {
            // Whole windows of the longest context, so that all contexts have the same tokens.
            let starts = (0..windows * longest / context).map(|i| i * context);
            let documents = starts.map(|start| {
                let place = start..start + context + 1;
                Reading::Text(ScoreRequest::of_part(text.clone(), place, context))
            });
            self.measures.push(Measure {
                name: format!("perplexity at {context}"),
                kind: Kind::Text { context },
                documents: documents.collect(),
            });
        }
        Ok(())
    }

    /// Adds a task by likelihoods. If it has short answers, it also makes a measure by answers, which comes after all
    /// tasks.
    fn add_task(
        &mut self,
        task: Task,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Measure>, EvalError> {
        let Some(folder) = &self.options.data else {
            return Ok(None);
        };
        let file = match task.file_in(folder) {
            Ok(file) => file,
            Err(missing @ EvalError::NoData { .. }) => {
                self.left_out.push(format!("{task} is left out: {missing}"));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let documents = task.read(&[file], self.options.limit)?;
        let answers = match task {
            Task::LambadaOpenai | Task::ArcEasy => self.answers(task, &documents, tokenizer)?,
            _ => None,
        };
        let measure = Measure {
            name: task.to_string(),
            kind: Kind::Task(task),
            documents: self.questions(task, documents, tokenizer)?,
        };
        self.measures.push(measure);
        Ok(answers)
    }

    fn answers(
        &self,
        task: Task,
        documents: &[Document],
        tokenizer: &Tokenizer,
    ) -> Result<Option<Measure>, EvalError> {
        let answers = documents.iter().filter_map(|document| {
            let answer = Answer::of(document, tokenizer, self.max_length);
            answer.map(|answer| answer.map(Reading::Answer)).transpose()
        });
        let documents = answers.collect::<Result<Vec<_>, _>>()?;
        Ok((!documents.is_empty()).then(|| Measure {
            name: format!("{task}, made"),
            kind: Kind::Answers(task),
            documents,
        }))
    }

    /// Adds the documents of a probe, one length after the other.
    fn add_probe(&mut self, task: Task, tokenizer: &Tokenizer) -> Result<(), EvalError> {
        let lengths = if self.options.lengths.is_empty() {
            probe_lengths(self.max_length)
        } else {
            self.options.lengths.clone()
        };
        for (i, &length) in lengths.iter().enumerate() {
            if lengths[..i].contains(&length) {
                continue;
            }
            if length > self.max_length {
                self.left_out.push(format!(
                    "{task} at {length} is left out: at most {} tokens are read at once",
                    self.max_length
                ));
                continue;
            }
            let sizes = ProbeSizes {
                lengths: vec![length],
                documents: self.options.limit.unwrap_or(probe_documents(length)),
                seed: self.options.seed,
            };
            let documents = match task.probe(tokenizer, &sizes) {
                Ok(documents) => documents,
                Err(wrong @ (EvalError::NoRoom { .. } | EvalError::TooMuchRoom { .. })) => {
                    self.left_out
                        .push(format!("{task} at {length} is left out: {wrong}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let measure = Measure {
                name: format!("{task} at {length}"),
                kind: Kind::Recall { task, length },
                documents: self.questions(task, documents, tokenizer)?,
            };
            self.measures.push(measure);
        }
        Ok(())
    }

    fn questions(
        &self,
        task: Task,
        documents: Vec<Document>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Reading>, EvalError> {
        let prompts = documents.iter().flat_map(|document| &document.prompts);
        let mut all = requests(prompts, tokenizer, self.max_length)?.into_iter();
        let readings = documents.into_iter().map(|document| Reading::Question {
            requests: all.by_ref().take(document.prompts.len()).collect(),
            by_length: is_by_length(task, &document.question),
            question: document.question,
        });
        Ok(readings.collect())
    }
}

/// The lengths of the probes' documents for models that read at most `max_length` tokens at once. The shortest length
/// is always included.
fn probe_lengths(max_length: usize) -> Vec<usize> {
    let shortest = LENGTHS[0];
    let longest = max_length.clamp(shortest, LONGEST_PROBE);
    let doubles = std::iter::successors(Some(shortest), |length| Some(2 * length));
    doubles.take_while(|length| *length <= longest).collect()
}

/// The number of documents of `length` tokens. If they are longer than the usual ones, they have as many tokens in all
/// as the documents of the longest usual length.
fn probe_documents(length: usize) -> usize {
    let usual = LENGTHS[LENGTHS.len() - 1];
    (DOCUMENTS * usual / length.max(usual)).max(FEWEST)
}

/// Whether the usual score of a task compares choices per character.
fn is_by_length(task: Task, question: &Question) -> bool {
    matches!(task, Task::Hellaswag | Task::ArcChallenge)
        && matches!(question, Question::Choice { .. })
}

/// The first tokens of the texts: one more than `most`, or all of them. The token that separates documents comes before
/// each document.
fn stream(sources: &[PathBuf], tokenizer: &Tokenizer, most: usize) -> Result<Vec<u32>, EvalError> {
    let prefix = tokenizer.prefix().ok_or(EvalError::NoPrefix)?;
    let mut ids = Vec::new();
    for document in Documents::new(source_files(sources)?) {
        ids.push(prefix);
        ids.extend(tokenizer.encode(&document?)?);
        if ids.len() > most {
            ids.truncate(most + 1);
            break;
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_go_to_the_models_context() {
        assert_eq!(probe_lengths(100), [256]);
        assert_eq!(probe_lengths(2048), LENGTHS);
        assert_eq!(probe_lengths(4000), LENGTHS);
        let longest = [256, 512, 1024, 2048, 4096, 8192];
        assert_eq!(probe_lengths(8192), longest);
        assert_eq!(probe_lengths(131_072), longest);
        let documents = [256, 2048, 4096, 8192, 131_072].map(probe_documents);
        assert_eq!(documents, [100, 100, 50, 25, 16]);
    }
}
