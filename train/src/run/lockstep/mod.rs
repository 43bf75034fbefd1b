//! Several runs in lockstep: each step reads one batch, computes the teacher once, and trains the student of each run.
//!
//! [`apart`] and [`alone`] decide which runs can go together. Each run has its own folder, checkpoints, optimizer and
//! log, as if it were alone, and its student gets the same bits. At any time, the runs that are furthest behind take a
//! step; when they have reached the others, all continue together. So runs that were stopped or killed at different
//! steps come together again, and no state of the group is saved.
//!
//! A run that diverges leaves the group, and the others continue. Any other error ends all of them, and all can be
//! resumed.

mod room;
mod rule;

use std::time::Instant;

use kernels::TrainBackend;
use model::PhiMamba;

use super::begin::{Begun, Company};
use super::prefetch::Prefetch;
use super::stage::{NextStep, StageBatch, StageUnderWay};
use super::{Outcome, Run, RunOptions, say_stopped};
use crate::error::TrainError;
use crate::logging::say;
use crate::step::{Learning, Measured, TrainStep};

pub(crate) use room::{Need, Room};
pub(crate) use rule::{alone, apart};

/// The panic message if a run is used while its student is in a step.
const HAS_STUDENT: &str = "the student is there between steps";
/// The panic message if a run takes a step outside of a stage.
const HAS_STAGE: &str = "a stage begins before its steps";

/// The number of a stage in the list, and the number of its steps that are done. After the last stage, the number of
/// stages.
type Position = (usize, usize);

/// The batches from a position on.
type BatchesFrom = (Position, Prefetch<StageBatch, TrainError>);

/// One of the runs.
struct Member<B: TrainBackend> {
    /// Its number in the list of runs.
    number: usize,
    run: Run<B>,
    /// `None` while the student is in a step.
    student: Option<PhiMamba<B>>,
    /// `None` between stages.
    stage: Option<StageUnderWay<B>>,
    next: Option<NextStep>,
}

/// How each run of the list has ended; `None` for runs that have not.
struct Ended(Vec<Option<Result<Outcome, TrainError>>>);

impl<B: TrainBackend> Run<B> {
    /// Executes all `runs`, in lockstep if they [can be](apart), and returns how each has ended: finished, stopped on
    /// request, or with the error by which it [diverged](TrainError::is_divergence).
    ///
    /// # Errors
    /// Any other [`TrainError`], of the first run that has one. What the runs wrote before that remains, and they can
    /// be resumed.
    pub(crate) fn execute_in_lockstep(
        runs: Vec<RunOptions>,
        device: &B::Device,
    ) -> Result<Vec<Result<Outcome, TrainError>>, TrainError> {
        let mut ended = Ended(runs.iter().map(|_| None).collect());
        let mut groups: Vec<Vec<Member<B>>> = vec![];
        for (number, options) in runs.into_iter().enumerate() {
            match Self::begin(options, device, Company::in_lockstep())? {
                Begun::Finished(summary) => {
                    ended.set(number, Ok(Outcome::Finished(*summary)))?;
                }
                Begun::Stopped => return Ok(ended.or_stopped()),
                Begun::Open(open) => {
                    let (run, student) = *open;
                    join(&mut groups, number, run, student);
                }
            }
        }
        for group in groups {
            if !ended.drive(group)? {
                break;
            }
        }
        Ok(ended.or_stopped())
    }

    /// Why this run cannot be in lockstep with `other`: a key of their configurations, or files that have changed
    /// between the beginnings of the two runs.
    fn apart_by_files(&self, other: &Self) -> Option<String> {
        if let Some(key) = apart(&self.options.config, &other.options.config) {
            return Some(key);
        }
        let (own, others) = (&self.made_from, &other.made_from);
        let text = |run: &Self| -> Vec<String> {
            let texts = run.train.iter().map(|text| text.is.sha256.clone());
            texts.collect()
        };
        let vocab_size = |run: &Self| run.student_config.network().vocab_size;
        let differs = [
            ("the teacher", own.teacher != others.teacher),
            ("the tokenizer", own.tokenizer != others.tokenizer),
            ("the text", text(self) != text(other)),
            ("the vocabulary", vocab_size(self) != vocab_size(other)),
        ];
        let found = differs.into_iter().find(|(_, differs)| *differs);
        found.map(|(what, _)| what.to_owned())
    }
}

/// Adds a run to the first of `groups` that it can go with. It then shares the teacher and the text of the group's
/// first run, so that they are in memory once.
fn join<B: TrainBackend>(
    groups: &mut Vec<Vec<Member<B>>>,
    number: usize,
    mut run: Run<B>,
    student: PhiMamba<B>,
) {
    let mut reason = None;
    let mut place = None;
    for (i, group) in groups.iter().enumerate() {
        reason = run.apart_by_files(&group[0].run);
        if reason.is_none() {
            place = Some(i);
            break;
        }
    }
    if let Some(reason) = reason {
        run.watch.note(&format!(
            "not in lockstep with those before, since {reason} differs"
        ));
    }
    let i = place.unwrap_or_else(|| {
        groups.push(vec![]);
        groups.len() - 1
    });
    if let Some(first) = groups[i].first() {
        run.teacher.clone_from(&first.run.teacher);
        run.train.clone_from(&first.run.train);
    }
    groups[i].push(Member {
        number,
        run,
        student: Some(student),
        stage: None,
        next: None,
    });
}

impl Ended {
    /// Notes how run `number` of the list has ended.
    ///
    /// # Errors
    /// The error of `how`, unless it is a divergence.
    fn set(&mut self, number: usize, how: Result<Outcome, TrainError>) -> Result<(), TrainError> {
        match how {
            Err(error) if !error.is_divergence() => return Err(error),
            Err(error) => {
                say(&error);
                self.0[number] = Some(Err(error));
            }
            Ok(outcome) => self.0[number] = Some(Ok(outcome)),
        }
        Ok(())
    }

    /// The results of all runs; those that have not ended count as stopped.
    fn or_stopped(self) -> Vec<Result<Outcome, TrainError>> {
        let all = self.0.into_iter();
        all.map(|ended| ended.unwrap_or(Ok(Outcome::Stopped)))
            .collect()
    }

    /// Calls `work` for each of `members`. A member that diverges in it is removed.
    fn each<B: TrainBackend>(
        &mut self,
        members: &mut Vec<Member<B>>,
        mut work: impl FnMut(&mut Member<B>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut left = vec![];
        for mut member in members.drain(..) {
            match work(&mut member) {
                Ok(()) => left.push(member),
                Err(error) => self.set(member.number, Err(error))?,
            }
        }
        *members = left;
        Ok(())
    }

    /// Does the rest of the work of `members`; false if they were asked to stop before the end.
    fn drive<B: TrainBackend>(&mut self, mut members: Vec<Member<B>>) -> Result<bool, TrainError> {
        let mut batches = None;
        while let Some(at) = members.iter().map(Member::position).min() {
            let is_behind = |member: &Member<B>| member.position() == at;
            let (mut behind, ahead): (Vec<_>, Vec<_>) = members.into_iter().partition(is_behind);
            members = ahead;
            if !self.advance(&mut behind, at, &mut batches)? {
                return Ok(false);
            }
            members.extend(behind);
        }
        Ok(true)
    }

    /// Moves `members`, which are all `at` the same position, forward by one step, or over the end of a stage or of the
    /// run; false if they were asked to stop.
    fn advance<B: TrainBackend>(
        &mut self,
        members: &mut Vec<Member<B>>,
        at: Position,
        batches: &mut Option<BatchesFrom>,
    ) -> Result<bool, TrainError> {
        let (number, step) = at;
        if number == members[0].run.options.config.stages.len() {
            for Member {
                number,
                run,
                student,
                ..
            } in members.drain(..)
            {
                let closed = run.close(&student.expect(HAS_STUDENT));
                self.set(number, closed.map(Outcome::Finished))?;
            }
            return Ok(true);
        }
        self.each(members, |member| member.begin_stage(number))?;
        if members
            .first()
            .is_some_and(|member| step >= member.stage().steps)
        {
            return self.end_stage(members);
        }
        let mut has_measured = false;
        self.each(members, |member| {
            has_measured |= member.measure_if_due()?;
            Ok(())
        })?;
        if has_measured {
            restart_clocks(members);
        }
        if members.iter().any(|member| member.run.is_asked_to_stop()) {
            self.each(members, Member::stop)?;
            return Ok(false);
        }
        let Some(first) = members.first() else {
            return Ok(true);
        };
        let waits = Instant::now();
        let mut from = match batches.take() {
            Some(from) if from.0 == at => from,
            _ => (at, first.run.batches(number)?),
        };
        let gives_up = |member: &Member<B>| member.run.gives_up_text(number);
        let Some(batch) = from.1.next(|| members.iter().any(gives_up))? else {
            *batches = Some(from);
            return Ok(true);
        };
        *batches = Some(((number, step + 1), from.1));
        let data_wait = waits.elapsed().as_secs_f64();
        self.each(members, |member| member.before_step(&batch, data_wait))?;
        if step == 0 {
            restart_clocks(members);
        }
        let mut measured = step_together(members, &batch).into_iter();
        let mut has_written = false;
        self.each(members, |member| match measured.next() {
            Some(measured) => member.after_step(measured),
            None => Ok(()),
        })?;
        self.each(members, |member| {
            has_written |= member.checkpoint_if_due()?;
            Ok(())
        })?;
        if has_written {
            restart_clocks(members);
        }
        Ok(true)
    }

    /// Ends the current stage of `members`. Their last checkpoints come before the evaluations, which take time and may
    /// fail. False if they were asked to stop.
    fn end_stage<B: TrainBackend>(
        &mut self,
        members: &mut Vec<Member<B>>,
    ) -> Result<bool, TrainError> {
        self.each(members, Member::end_steps)?;
        let mut has_stopped = false;
        self.each(members, |member| {
            has_stopped |= !member.end_stage()?;
            Ok(())
        })?;
        Ok(!has_stopped)
    }
}

/// Does the next step of each of `members` over `batch`, and returns what the steps have measured.
fn step_together<B: TrainBackend>(
    members: &mut [Member<B>],
    (batch, _): &StageBatch,
) -> Vec<Measured<B::InnerBackend>> {
    let Some(at) = members
        .first()
        .and_then(|member| Some(member.next.as_ref()?.at))
    else {
        return vec![];
    };
    let learning = members.iter_mut().map(|member| {
        let Member {
            run,
            student,
            stage,
            next,
            ..
        } = member;
        Learning {
            steps: &stage.as_ref().expect(HAS_STAGE).train_step,
            student: student.take().expect(HAS_STUDENT),
            optimizer: &mut run.optimizer,
            rates: &next.as_ref().expect(HAS_STAGE).rates,
        }
    });
    let done = TrainStep::step_together(learning.collect(), batch, at);
    let done = members.iter_mut().zip(done);
    done.map(|(member, (student, measured))| {
        member.student = Some(student);
        measured
    })
    .collect()
}

/// Restarts the clocks of all `members` without pending steps, after one of them has done work that is not training.
fn restart_clocks<B: TrainBackend>(members: &mut [Member<B>]) {
    for member in members {
        if let Some(stage) = &mut member.stage {
            stage.pending.restart_if_idle();
        }
    }
}

impl<B: TrainBackend> Member<B> {
    fn position(&self) -> Position {
        let number = self.run.progress.finished.len();
        if number == self.run.options.config.stages.len() {
            (number, 0)
        } else {
            (number, self.run.steps_done(number))
        }
    }

    fn stage(&self) -> &StageUnderWay<B> {
        self.stage.as_ref().expect(HAS_STAGE)
    }

    /// Begins stage `number` of the list, unless it is under way.
    fn begin_stage(&mut self, number: usize) -> Result<(), TrainError> {
        if self.stage.is_none() {
            let student = self.student.take().expect(HAS_STUDENT);
            let (stage, student) = self.run.begin_stage(number, student)?;
            (self.stage, self.student) = (Some(stage), Some(student));
        }
        Ok(())
    }

    /// The run, its stage and its student.
    fn parts(&mut self) -> (&mut Run<B>, &mut StageUnderWay<B>, &PhiMamba<B>) {
        let stage = self.stage.as_mut().expect(HAS_STAGE);
        let student = self.student.as_ref().expect(HAS_STUDENT);
        (&mut self.run, stage, student)
    }

    fn measure_if_due(&mut self) -> Result<bool, TrainError> {
        let (run, stage, student) = self.parts();
        let is_due = run.is_measured_now();
        if is_due {
            run.measure_within(&stage.config, student, &mut stage.pending)?;
        }
        Ok(is_due)
    }

    fn stop(&mut self) -> Result<(), TrainError> {
        let (run, stage, student) = self.parts();
        run.stop(stage, student)
    }

    fn before_step(&mut self, batch: &StageBatch, data_wait: f64) -> Result<(), TrainError> {
        let (run, stage, _) = self.parts();
        self.next = Some(run.before_step(stage, batch, data_wait)?);
        Ok(())
    }

    fn after_step(&mut self, measured: Measured<B::InnerBackend>) -> Result<(), TrainError> {
        let done = self.next.take().expect(HAS_STAGE);
        let (run, stage, _) = self.parts();
        // A run that may be rolled back is never in lockstep.
        run.after_step(stage, &done, measured).map(|_| ())
    }

    fn checkpoint_if_due(&mut self) -> Result<bool, TrainError> {
        let (run, stage, student) = self.parts();
        let is_due = run.writes_checkpoint(stage);
        if is_due {
            run.checkpoint_within(stage, student)?;
        }
        Ok(is_due)
    }

    fn end_steps(&mut self) -> Result<(), TrainError> {
        let (run, stage, student) = self.parts();
        run.end_steps(stage, student)
    }

    /// False if asked to stop.
    fn end_stage(&mut self) -> Result<bool, TrainError> {
        let (run, stage, student) = self.parts();
        let has_ended = run.end_stage(&stage.config, student)?;
        if has_ended {
            self.stage = None;
        } else {
            run.writer.wait()?;
            say_stopped(&run.options, &mut run.watch);
        }
        Ok(has_ended)
    }
}
