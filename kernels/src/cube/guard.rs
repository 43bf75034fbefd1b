//! Failures of queued work.
//!
//! A launch returns before it is done, on a thread of CubeCL's own for each device. What panics there
//! (a kernel that does not expand, a buffer that is gone, memory that is used up) is caught, logged as a
//! warning and forgotten: the outputs stay as they were, and nobody is told. So the panics of those threads
//! are kept here, for whoever waits for the device to find.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use crate::backends::failure::is_known;

/// The first panic on a device's thread that nobody was told of yet.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);
/// Whether somebody stands by to say in a sentence what has failed.
static STANDING_BY: AtomicBool = AtomicBool::new(false);

/// CubeCL's name for a device's thread: `DSD-1-0`, or `DSU-1-0` for what feeds it.
fn is_device_thread() -> bool {
    let thread = thread::current();
    let name = thread.name().unwrap_or_default();
    name.starts_with("DSD-") || name.starts_with("DSU-")
}

/// From now on, keeps the panics of devices' threads. The earlier panic hook is still called, but for what
/// [`caught`] will tell better, and for what follows from it.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let reason = panic.payload_as_str().unwrap_or("no reason given");
            let standing_by = STANDING_BY.load(Ordering::Relaxed);
            let mut failure = lock();
            let follows = failure.is_some();
            if is_device_thread() {
                let place = panic.location().map(ToString::to_string);
                let place = place.unwrap_or_else(|| "an unknown place".into());
                failure.get_or_insert_with(|| format!("{reason} (at {place})"));
            }
            drop(failure);
            if !(standing_by && (follows || is_known(reason))) {
                earlier(panic);
            }
        }));
    });
}

/// The first panic since this was last asked.
pub(crate) fn take() -> Option<String> {
    lock().take()
}

/// Does `work`. If it panics since the device has failed, what the device said.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    STANDING_BY.store(true, Ordering::Relaxed);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    STANDING_BY.store(false, Ordering::Relaxed);
    result.or_else(|panic| {
        // What a device's thread said comes first: it is why this one could not go on.
        let of_device = take().or_else(|| text(&*panic).filter(|reason| is_known(reason)));
        match of_device {
            Some(reason) => Err(reason),
            None => resume_unwind(panic),
        }
    })
}

fn text(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.map(str::to_owned)
}

fn lock() -> std::sync::MutexGuard<'static, Option<String>> {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner)
}
