//! Signals that a program was started to ignore, and signals that come twice.
//!
//! `nohup`, a shell's `trap '' INT`, and a script that starts a program in the background let the program ignore some
//! signals from its start. If the program installed a handler, it would receive these signals again. So the programs
//! here install no handler for a signal that is ignored.

use std::os::raw::c_int;
use std::time::Duration;

/// How long after the first signal that asks a program to stop further ones are the same request. `timeout` and
/// launchers of several processes signal a program, and also its whole group.
pub const ONE_REQUEST: Duration = Duration::from_secs(1);

/// The number of the signal that Ctrl-C sends.
#[cfg(unix)]
pub const INTERRUPT: c_int = libc::SIGINT;

/// The number of the signal that Ctrl-C sends.
#[cfg(not(unix))]
pub const INTERRUPT: c_int = 2;

/// Whether this process ignores a signal now. Ask before a handler is installed for it. `false` for a number that
/// is no signal's.
#[cfg(unix)]
pub fn is_ignored(signal: c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action this changes nothing, and it writes the present one if it returns 0.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether this process ignores a signal: there is no way to start a program so.
#[cfg(not(unix))]
pub fn is_ignored(_: c_int) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known() {
        // Rust's own start ignores it, in every program; no test harness ignores the other.
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGUSR1));
        assert!(!is_ignored(-1));
    }
}
