//! Signals that the program was started to ignore: by `nohup`, or in the background of a script.
//!
//! Whoever ignores a signal for a program wants that it goes on. A handler would end it all the same, so
//! none is installed for such a signal.

#[cfg(unix)]
use std::os::raw::c_int;

/// Ctrl-C's.
#[cfg(unix)]
pub(crate) const INTERRUPT: c_int = libc::SIGINT;

/// Whether a signal is ignored. Ask before a handler is installed for it.
#[cfg(unix)]
pub(crate) fn is_ignored(signal: c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null pointer for the new action, this only writes the present one to `action`, for
    // which all zeros are a valid value.
    let action = unsafe {
        let failed = libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) != 0;
        if failed {
            return false;
        }
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(not(unix))]
pub(crate) const INTERRUPT: i32 = 2;

/// Whether a signal is ignored: there is no way to start a program so.
#[cfg(not(unix))]
pub(crate) fn is_ignored(_: i32) -> bool {
    false
}
