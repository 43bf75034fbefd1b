//! Failures of queued work, and of opening a device.
//!
//! CubeCL runs launches on one thread for each device, and the call returns before the launch is done. If that thread
//! panics (because a kernel cannot be expanded, a buffer does not exist any more, or the memory is used up), CubeCL
//! catches the panic, logs a warning and continues: the outputs keep their old content, and no error is returned. So a
//! panic hook stores the panics of these threads here, until the program waits for the device and asks for failures.

use std::any::Any;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use std::panic::resume_unwind;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use super::failure::is_known;

/// The first panic on a device's thread that has not been reported yet.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);
/// Whether [`caught`] will report what has failed.
static CATCHING: AtomicBool = AtomicBool::new(false);
/// While [`quietly`] works: the first panic of any thread.
static HEARD: Mutex<Option<Option<String>>> = Mutex::new(None);

/// CubeCL's name for a device's thread: `DSD-1-0`, or `DSU-1-0` for what feeds it.
fn is_device_thread() -> bool {
    let thread = thread::current();
    let name = thread.name().unwrap_or_default();
    name.starts_with("DSD-") || name.starts_with("DSU-")
}

/// Installs a panic hook, once in a process, that stores the panics of device threads, so that
/// [`synchronise`](super::synchronise), [`check`](super::check) and [`Backend::dispatch`](super::Backend::dispatch)
/// return them as errors. Call it before anything is computed on a GPU: without it, work that fails there silently
/// leaves its outputs unchanged.
///
/// The earlier hook is still called, but for panics that become an error.
pub fn report_failures() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let reason = panic.payload_as_str().unwrap_or("no reason given");
            if let Some(heard) = &mut *lock(&HEARD) {
                heard.get_or_insert_with(|| reason.to_owned());
                return;
            }
            let catching = CATCHING.load(Ordering::Relaxed);
            let mut failure = lock(&FAILURE);
            let follows = failure.is_some();
            if is_device_thread() {
                let place = panic.location().map(ToString::to_string);
                let place = place.unwrap_or_else(|| "an unknown place".into());
                failure.get_or_insert_with(|| format!("{reason} (at {place})"));
            }
            drop(failure);
            if !(catching && (follows || is_known(reason))) {
                earlier(panic);
            }
        }));
    });
}

/// The first panic of a device's thread since the last call.
pub(super) fn take() -> Option<String> {
    lock(&FAILURE).take()
}

/// Runs `work`. If it panics because the device has failed, returns the device's reason as an error; any other panic
/// continues.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    CATCHING.store(true, Ordering::Relaxed);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.store(false, Ordering::Relaxed);
    result.or_else(|panic| {
        // The reason of a device's thread comes first: it is why this one panicked.
        let of_device = take().or_else(|| text(&*panic).filter(|reason| is_known(reason)));
        match of_device {
            Some(reason) => Err(reason),
            None => resume_unwind(panic),
        }
    })
}

/// Runs `work`, which opens a device. If a panic occurs, returns the message of the first thread that panicked, which
/// is usually another thread, and prints nothing. (Without [`report_failures`], it returns the message of this thread.)
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = lock(&ONE_AT_A_TIME);
    *lock(&HEARD) = Some(None);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let heard = lock(&HEARD).take().flatten();
    result.map_err(|panic| heard.or_else(|| text(&*panic)).unwrap_or_default())
}

fn text(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.map(str::to_owned)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
