//! One optimizer step of several students, which read the same batch.
//!
//! The teacher's part of each pass is computed once for all students. If layers are compared, this is the input and the
//! output of each layer; if predictions are compared, the input of the head and, if they fit into one block, the
//! logits. Each student has its own graph, gradients and optimizer, and the operations on these are those of
//! [`TrainStep::step`]: it gets the same bits as alone.

use burn::tensor::Tensor;
use datasets::Batch;
use kernels::TrainBackend;
use kernels::profile::region;
use model::PhiMamba;

use super::{Measured, NO_TEACHER, Passed, TrainStep, Working};
use crate::gradients::Gradients;
use crate::optimizer::AdamW;
use crate::stages::{Kind, Learner, Parts as _, PassStudent, Rates, StageStep};

/// The loss of a pass, `[1]`, and its gradients.
type OfPass<B> = (Tensor<B, 1>, Gradients<B>);

/// A student of a step, and what it has for itself.
pub struct Learning<'a, B: TrainBackend> {
    /// The steps of its stage.
    pub steps: &'a TrainStep<B>,
    /// The student.
    pub student: PhiMamba<B>,
    /// Its optimizer.
    pub optimizer: &'a mut AdamW<B::InnerBackend>,
    /// Its learning rates by part.
    pub rates: &'a Rates,
}

impl<B: TrainBackend> TrainStep<B> {
    /// [`step`](Self::step) of each of `students`, in their order. All use the teacher of the first. Their steps must
    /// have the same teacher, sizes of passes and precision, and their stages must [share the
    /// teacher](crate::stages::Stage::shares_teacher).
    ///
    /// # Panics
    /// If a step was made without a teacher or its passes are shared by ranks, or if the steps differ in what they should
    /// have in common.
    pub fn step_together(
        students: Vec<Learning<'_, B>>,
        batch: &Batch,
        at: StageStep,
    ) -> Vec<(PhiMamba<B>, Measured<B::InnerBackend>)> {
        let Some(first) = students.first() else {
            return vec![];
        };
        let first = first.steps;
        let is_like_first = |steps: &Self| {
            let sizes = |steps: &Self| (steps.micro_batch, steps.passes, steps.precision);
            sizes(steps) == sizes(first) && steps.sharing.is_none()
        };
        assert!(
            students.iter().all(|student| is_like_first(student.steps)),
            "students in lockstep have the same passes, in one process"
        );
        // As in the step of one student.
        B::memory_persistent_allocations(&first.device, students, |students| {
            let (mut working, mut rest) = (vec![], vec![]);
            for Learning {
                steps,
                student,
                optimizer,
                rates,
            } in students
            {
                working.push(steps.working(student.into(), (batch, None), at));
                rest.push((steps, optimizer, rates));
            }
            let kinds: Vec<&Kind> = rest.iter().map(|(steps, ..)| &steps.kind).collect();
            let passed = region("passes", || first.run_together(&kinds, &working));
            // The copies of all of them are gone before the first update.
            let students: Vec<_> = working.into_iter().map(Working::into_student).collect();
            let updated = students.into_iter().zip(rest).zip(passed);
            let updated = updated.map(|((student, (steps, optimizer, rates)), passed)| {
                steps.updated(student, optimizer, passed, rates)
            });
            updated.collect()
        })
    }

    /// The losses and gradients of all passes for each student of `working`, whose stages are of these `kinds`.
    fn run_together(
        &self,
        kinds: &[&Kind],
        working: &[Working<'_, B>],
    ) -> Vec<Passed<B::InnerBackend>> {
        let mut sums: Vec<Passed<B::InnerBackend>> = working
            .iter()
            .map(|_| (vec![], Gradients::default()))
            .collect();
        self.parallel.run(
            0..self.passes,
            |number| self.pass_together(kinds, working, number),
            |of_pass| {
                for ((losses, sum), (loss, gradients)) in sums.iter_mut().zip(of_pass) {
                    losses.push(loss);
                    sum.merge(gradients);
                }
            },
        );
        sums
    }

    /// The loss of pass `number` for each student, and its gradients. All parameters of the students are complete from
    /// the start.
    fn pass_together(
        &self,
        kinds: &[&Kind],
        working: &[Working<'_, B>],
        number: usize,
    ) -> Vec<OfPass<B::InnerBackend>> {
        let Some(Working { batch, at, .. }) = working.first() else {
            return vec![];
        };
        let teacher = self.teacher.as_ref().expect(NO_TEACHER);
        let students = working.iter().map(|working| {
            let without_window = working.without_window(number);
            without_window.unwrap_or_else(|| working.whole())
        });
        let students: Vec<PhiMamba<B>> = students.collect();
        let students: Vec<PassStudent<'_, B>> = students.iter().map(PassStudent::from).collect();
        let mut gradients: Vec<_> = students.iter().map(|_| Gradients::default()).collect();
        let learners = students.iter().zip(kinds).zip(&mut gradients);
        let learners = learners.map(|((student, kind), gradients)| Learner {
            stage: *kind,
            student,
            gradients,
        });
        let tokens = self.tokens(batch, number);
        let losses = Kind::pass_together(learners.collect(), teacher, tokens, *at);
        losses.into_iter().zip(gradients).collect()
    }
}
