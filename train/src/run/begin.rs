//! How a run begins: it locks its folder, completes its configuration, and opens all that it needs.

use std::sync::Arc;

use kernels::{KernelBackend, TrainBackend};
use model::PhiMamba;

use super::folder::{Held, finished, is_run};
use super::{Run, RunOptions, StopRequest, sources};
use crate::config::Config;
use crate::error::TrainError;
use crate::parallel::{self, Ranks};
use crate::summary::Summary;

/// The other processes or runs that work together with a run.
pub(super) struct Company<B: KernelBackend> {
    /// The processes that share the run.
    ranks: Ranks<B>,
    /// Whether other runs of this process are in lockstep with it.
    is_in_lockstep: bool,
}

impl<B: KernelBackend> Company<B> {
    /// Other processes share the run.
    pub(super) fn of(ranks: Ranks<B>) -> Self {
        Self {
            ranks,
            is_in_lockstep: false,
        }
    }

    /// Other runs of this process are in lockstep with the run.
    pub(super) fn in_lockstep() -> Self {
        Self {
            ranks: Ranks::alone(),
            is_in_lockstep: true,
        }
    }
}

/// The same, after the run's folder was locked.
pub(super) struct AtWork<B: KernelBackend> {
    pub(super) ranks: Ranks<B>,
    /// Whether this process is asked to stop, if ranks share the run.
    pub(super) asked: StopRequest,
    pub(super) is_in_lockstep: bool,
}

/// The result of beginning a run.
pub(super) enum Begun<B: TrainBackend> {
    /// The run is finished already.
    Finished(Box<Summary>),
    /// The run was asked to stop before its first step.
    Stopped,
    /// The run is ready, with this student.
    Open(Box<(Run<B>, PhiMamba<B>)>),
}

impl<B: TrainBackend> Run<B> {
    /// Locks the run's folder and opens what the run needs.
    pub(super) fn begin(
        mut options: RunOptions,
        device: &B::Device,
        company: Company<B::InnerBackend>,
    ) -> Result<Begun<B>, TrainError> {
        let Company {
            ranks,
            is_in_lockstep,
        } = company;
        let asked = if ranks.is_alone() {
            StopRequest::default()
        } else {
            options.dashboard = false;
            std::mem::take(&mut options.stop)
        };
        let told = || {
            Ok((
                options.folder.clone(),
                options.resume,
                options.accept_changes,
            ))
        };
        (options.folder, options.resume, options.accept_changes) =
            ranks.from_first(device, told)?;
        options.config.validate()?;
        options.config = options.config.with_absolute_paths();
        for stage in &options.config.stages {
            parallel::indivisible(stage, ranks.place().world)?;
        }
        let taken = ranks.after_first(device, || take(&options))?;
        let finished = ranks.from_first(device, || match &taken {
            Some(Taken::Finished(summary)) => Ok(Some(Summary::clone(summary))),
            _ => Ok(None),
        })?;
        if let Some(summary) = finished {
            return Ok(Begun::Finished(Box::new(summary)));
        }
        let held = match taken {
            Some(Taken::Held(held)) => held,
            _ => Held::taken_by_first(&options.folder)?,
        };
        let held = Arc::new(held);
        let settled = settle_on_first(&mut options.config, device, &ranks);
        let at_work = AtWork {
            ranks,
            asked,
            is_in_lockstep,
        };
        let open = |()| Self::open(options, &held, device, at_work);
        let opened = match settled.and_then(open) {
            Ok(opened) => opened,
            Err(error) => {
                held.give_up();
                return Err(error);
            }
        };
        Ok(match opened {
            Some(open) => Begun::Open(Box::new(open)),
            None => Begun::Stopped,
        })
    }
}

/// The state of a run's folder, for the process that is to write it.
enum Taken {
    /// The folder is now locked by this process.
    Held(Held),
    /// Its run is finished.
    Finished(Box<Summary>),
}

/// Locks the run's folder, if there is work to do.
fn take(options: &RunOptions) -> Result<Taken, TrainError> {
    let folder = &options.folder;
    let exists = || !options.resume && is_run(folder);
    if exists() {
        return Err(TrainError::Exists(folder.clone()));
    }
    // A finished run may be on a disk that cannot be written.
    if options.resume
        && let Some(summary) = finished(folder)?
    {
        return Ok(Taken::Finished(Box::new(summary)));
    }
    let held = Held::take(folder)?;
    // Before the folder was locked, another process may have begun or ended a run in it.
    if exists() {
        return Err(TrainError::Exists(folder.clone()));
    }
    if options.resume
        && let Some(summary) = finished(folder)?
    {
        return Ok(Taken::Finished(Box::new(summary)));
    }
    Ok(Taken::Held(held))
}

/// [`sources::settle`] on rank 0; all ranks then have its configuration.
fn settle_on_first<B: KernelBackend>(
    config: &mut Config,
    device: &B::Device,
    ranks: &Ranks<B>,
) -> Result<(), TrainError> {
    ranks.after_first(device, || sources::settle(config))?;
    if ranks.is_alone() {
        return Ok(());
    }
    let text = ranks.from_first(device, || Ok(config.to_toml()?))?;
    if !ranks.is_first() {
        *config = toml::from_str(&text).map_err(|error| {
            TrainError::Ranks(format!(
                "the configuration of rank 0 cannot be read: {error}; all ranks must run the same program"
            ))
        })?;
    }
    Ok(())
}
