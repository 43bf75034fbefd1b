//! Failures of downloads, and retries.

use std::thread;
use std::time::Duration;

/// How often something is tried again. After a first wait of a second, the last try is two minutes after the first.
const RETRIES: u32 = 7;

/// The default of the first wait.
pub(super) const WAIT: Duration = Duration::from_secs(1);

/// Why something was not fetched.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether the same may succeed later: the hub is busy, or the connection broke.
    pub(super) passes: bool,
}

impl Failure {
    /// That of `error`.
    pub(super) fn of(error: &ureq::Error) -> Self {
        let (passes, advice) = match error {
            ureq::Error::StatusCode(401 | 403) => (
                false,
                "; the hub lets only some people have it: accept its conditions there, and give your token (HF_TOKEN)",
            ),
            ureq::Error::StatusCode(status) => (matches!(status, 408 | 429 | 500..), ""),
            ureq::Error::BadUri(_) | ureq::Error::Tls(_) => (false, ""),
            _ => (true, ""),
        };
        Self {
            reason: format!("{error}{advice}"),
            passes,
        }
    }

    pub(super) fn passing(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            passes: true,
        }
    }

    pub(super) fn named(self, file: &str) -> Self {
        Self {
            reason: format!("{file}: {}", self.reason),
            ..self
        }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self {
            reason,
            passes: false,
        }
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        failure.reason
    }
}

/// Calls `fetch` again, up to [`RETRIES`] times, as long as it fails for a reason that may pass: after `wait`, then
/// after twice that, and so on.
pub(super) fn patiently<T>(
    wait: Duration,
    mut fetch: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut wait = wait;
    for _ in 0..RETRIES {
        match fetch() {
            Err(failure) if failure.passes => {
                let seconds = wait.as_secs_f32();
                log::warn!("{}; trying again in {seconds:.0} s", failure.reason);
                thread::sleep(wait);
                wait *= 2;
            }
            fetched => return fetched,
        }
    }
    fetch()
}
