//! Repeats writes that failed for a temporary reason, such as a full disk or a network file system that does not
//! answer.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use crate::logging::say;

/// Seconds between two attempts. Together they are ten minutes, after which the run ends and can be resumed.
const PAUSES: [u64; 15] = [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60, 60];

/// Calls `work` and returns its result. If it fails for a reason that may be temporary, the user is told, and `work` is
/// repeated after a pause; each pause is longer than the one before. `pause` waits, and returns false to give up.
///
/// # Errors
/// The last error of `work`.
pub(crate) fn retry<T, E: Error + 'static>(
    mut pause: impl FnMut(Duration) -> bool,
    mut work: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match work() {
            Err(error) if may_pass(&error) => error,
            result => return result,
        };
        let Some(seconds) = pauses.next() else {
            return Err(error);
        };
        say(format_args!(
            "warning: {error}; trying again in {seconds} s, and up to ten minutes in all"
        ));
        if !pause(Duration::from_secs(seconds)) {
            return Err(error);
        }
    }
}

/// Waits for `time`, and never gives up.
pub(crate) fn sleep(time: Duration) -> bool {
    std::thread::sleep(time);
    true
}

/// Whether the cause of `error` may be temporary.
fn may_pass(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(system) = error.downcast_ref::<io::Error>() {
            return matches!(
                system.kind(),
                ErrorKind::StorageFull
                    | ErrorKind::QuotaExceeded
                    | ErrorKind::TimedOut
                    | ErrorKind::StaleNetworkFileHandle
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
            );
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::TrainError;
    use crate::error::io_error;

    /// How often `work` is done that fails `failures` times with `kind`, the pauses, and the result.
    fn tries(kind: ErrorKind, failures: usize) -> (usize, Vec<u64>, Result<(), TrainError>) {
        let (mut done, mut pauses) = (0, vec![]);
        let result = retry(
            |time| {
                pauses.push(time.as_secs());
                true
            },
            || {
                done += 1;
                if done > failures {
                    return Ok(());
                }
                Err(io_error(Path::new("a file"))(kind.into()))
            },
        );
        (done, pauses, result)
    }

    #[test]
    fn a_full_disk_is_waited_for() {
        let (done, pauses, result) = tries(ErrorKind::StorageFull, 3);
        assert_eq!((done, pauses), (4, vec![1, 2, 4]));
        result.unwrap();
        // Not for ever.
        let (done, pauses, result) = tries(ErrorKind::QuotaExceeded, usize::MAX);
        assert_eq!((done, pauses.iter().sum::<u64>()), (16, 603));
        assert!(result.unwrap_err().to_string().contains("a file"));
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        for kind in [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied] {
            let (done, pauses, result) = tries(kind, 1);
            assert_eq!((done, pauses), (1, vec![]));
            assert!(result.is_err());
        }
    }

    #[test]
    fn a_cause_is_found_below_other_errors() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let path = Path::new("a").to_owned();
        let weights = TrainError::Weights(model::WeightsError::Io {
            path: path.clone(),
            source: full(),
        });
        let manifest = model::manifest::ManifestError::Io {
            path,
            source: full(),
        };
        assert!(may_pass(&weights));
        assert!(may_pass(&TrainError::Manifest(manifest)));
        assert!(!may_pass(&TrainError::Mismatch("full".into())));
    }

    #[test]
    fn the_wait_can_be_given_up() {
        let mut done = 0;
        let result: Result<(), _> = retry(
            |_| false,
            || {
                done += 1;
                Err(io::Error::from(ErrorKind::StorageFull))
            },
        );
        assert_eq!(
            (done, result.unwrap_err().kind()),
            (1, ErrorKind::StorageFull)
        );
    }
}
