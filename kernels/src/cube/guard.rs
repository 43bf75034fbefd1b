//! Failures of queued work.
//!
//! A launch returns before it is done, on a thread of CubeCL's own for each device. What panics there
//! (a kernel that does not expand, a buffer that is gone) is caught, logged as a warning and forgotten:
//! the outputs stay as they were, and nobody is told. So the panics of those threads are kept here, for
//! whoever waits for the device to find.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// The first panic on a device's thread that nobody was told of yet.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// CubeCL's name for a device's thread: `DSD-1-0`, or `DSU-1-0` for what feeds it.
fn is_device_thread() -> bool {
    let thread = thread::current();
    let name = thread.name().unwrap_or_default();
    name.starts_with("DSD-") || name.starts_with("DSU-")
}

/// From now on, keeps the panics of devices' threads. The earlier panic hook is still called.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if is_device_thread() {
                let reason = panic.payload_as_str().unwrap_or("no reason given");
                let place = panic.location().map(ToString::to_string);
                let place = place.unwrap_or_else(|| "an unknown place".into());
                let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| format!("{reason} (at {place})"));
            }
            earlier(panic);
        }));
    });
}

/// The first panic since this was last asked.
pub(crate) fn take() -> Option<String> {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    failure.take()
}
