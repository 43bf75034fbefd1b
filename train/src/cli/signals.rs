//! The signals that ask the program to stop: Ctrl-C, SIGTERM (from a cluster's scheduler), and SIGHUP (from a terminal
//! that closes).
//!
//! A signal that is ignored when the program starts stays ignored, as in other programs: so `nohup` protects a run when
//! its terminal closes, and a shell's `trap '' INT` protects it from Ctrl-C.

use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::anyhow;
use model::signals::ONE_REQUEST;

use crate::logging::say;
use crate::run::StopRequest;

/// The exit code that shells report for a program that was ended by Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;

/// A flag that the first of these signals sets. A second one ends the program at once, unless it is a part of the
/// [same request](ONE_REQUEST).
pub(super) fn stop_on_interrupt() -> anyhow::Result<StopRequest> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let mut first: Option<Instant> = None;
    on_interrupt(move || {
        if let Some(first) = first {
            if first.elapsed() > ONE_REQUEST {
                exit(INTERRUPTED.into());
            }
            return;
        }
        first = Some(Instant::now());
        flag.store(true, Ordering::Relaxed);
        say("stopping with a checkpoint after the steps that are begun; once more to stop at once");
    })
    .map_err(|error| anyhow!("cannot listen for Ctrl-C: {error}"))?;
    Ok(StopRequest::on(stop))
}

/// Calls `handler` at each of these signals that is not ignored.
pub(super) fn on_interrupt(handler: impl FnMut() + Send + 'static) -> Result<(), ctrlc::Error> {
    #[cfg(unix)]
    let ignored = unix::ignored();
    // `ctrlc` installs its handler for all of these signals, also for ignored ones.
    ctrlc::set_handler(handler)?;
    #[cfg(unix)]
    unix::ignore(&ignored);
    Ok(())
}

#[cfg(unix)]
mod unix {
    use model::signals::is_ignored;

    /// What `ctrlc` listens for.
    const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

    /// Those of [`SIGNALS`] that this process ignores.
    pub(super) fn ignored() -> Vec<libc::c_int> {
        let signals = SIGNALS.into_iter();
        signals.filter(|signal| is_ignored(*signal)).collect()
    }

    /// Ignores `signals`.
    pub(super) fn ignore(signals: &[libc::c_int]) {
        for &signal in signals {
            // SAFETY: ignoring a signal runs no code of this program.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}
