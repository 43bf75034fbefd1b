//! The input of a pass: a batch, its step, and its students.

use burn::tensor::{Int, Tensor};
use kernels::{DocumentStarts, TrainBackend};
use model::TokenRows;

use super::PassStudent;
use crate::gradients::Sink;

/// Token ids and, for each, the one that follows: both `[b, l]`.
#[derive(Debug, Clone)]
pub struct TokenBatch<B: TrainBackend> {
    /// What both networks read.
    pub ids: Tensor<B::InnerBackend, 2, Int>,
    /// The next tokens, for hard labels. Negative for a token that ends its document: no token follows it.
    pub labels: Tensor<B::InnerBackend, 2, Int>,
    /// Whether there are negative labels.
    pub has_ends: bool,
    /// The documents of the rows, if any row has several separate documents.
    pub documents: Option<DocumentStarts<B::InnerBackend>>,
}

impl<B: TrainBackend> TokenBatch<B> {
    /// What the teacher reads.
    pub fn tokens(&self) -> TokenRows<B::InnerBackend> {
        TokenRows {
            ids: self.ids.clone(),
            documents: self.documents.clone(),
        }
    }

    /// The documents, for the student.
    pub fn documents_of_student(&self) -> Option<DocumentStarts<B>> {
        self.documents.clone().map(DocumentStarts::from_inner)
    }
}

/// Where in its stage a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageStep {
    /// The optimizer step, from 0.
    pub number: usize,
    /// The steps of the stage.
    pub of: usize,
}

impl StageStep {
    /// Whether the step is among the last steps of the stage. `share` is their share of the stage, rounded to whole
    /// steps.
    pub fn is_in_last(self, share: f64) -> bool {
        let last = (share * self.of as f64).round() as usize;
        self.of.saturating_sub(self.number) <= last
    }

    /// Whether the step is the first of those, and not the first of the stage.
    pub fn begins_last(self, share: f64) -> bool {
        let number = self.number.checked_sub(1);
        let before = number.map(|number| Self { number, ..self });
        self.is_in_last(share) && before.is_some_and(|before| !before.is_in_last(share))
    }
}

/// A student of a pass.
pub struct Learner<'a, S, B: TrainBackend> {
    /// The stage's options for this student.
    pub stage: &'a S,
    /// The student.
    pub student: &'a PassStudent<'a, B>,
    /// Receives its gradients.
    pub gradients: &'a mut dyn Sink<B::InnerBackend>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_are_a_share_of_all() {
        let last = |share, of| {
            let steps = (0..of).filter(|&number| StageStep { number, of }.is_in_last(share));
            steps.collect::<Vec<_>>()
        };
        assert_eq!(last(0.0, 4), [0usize; 0]);
        assert_eq!(last(0.25, 8), [6, 7]);
        assert_eq!(last(0.3, 5), [3, 4]);
        assert_eq!(last(0.1, 4), [0usize; 0]);
        assert_eq!(last(1.0, 3), [0, 1, 2]);
        let begins = |share, of| {
            let mut steps = (0..of).map(|number| StageStep { number, of });
            steps.find(|step| step.begins_last(share))
        };
        assert_eq!(begins(0.25, 8), Some(StageStep { number: 6, of: 8 }));
        assert_eq!(begins(0.0, 4), None);
        assert_eq!(begins(1.0, 3), None);
    }
}
