//! Errors of backends, recognised from the messages of libraries and drivers.
//!
//! CubeCL passes these messages on as text: in an error that it returns while the program waits for the device, or in
//! the panic of a thread. A message that is known here becomes a clear sentence; every other message is shown
//! unchanged.

use std::fmt;

use super::backend::Backend;

/// Why a backend cannot be used, or why its work failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendError {
    /// This build lacks it.
    NotBuiltIn,
    /// It has no device here that works.
    NoDevice {
        /// The backend.
        backend: Backend,
        /// What the driver or its library said.
        reason: String,
    },
    /// The device has no memory left.
    OutOfMemory {
        /// The bytes that it was asked for and did not have, if it is known.
        asked: Option<u64>,
        /// The bytes in use on it, by all programs, and all that it has, if that is known.
        used: Option<(u64, u64)>,
    },
    /// The device is lost: its driver or the machine has failed.
    Lost {
        /// What was said then.
        reason: String,
    },
    /// The driver is older than the libraries that talk to it.
    OldDriver {
        /// What was said then.
        reason: String,
    },
    /// Work queued on its device failed, so that results are not what they should be.
    Failed {
        /// What was said then.
        reason: String,
    },
}

/// Parts of the messages that mean that a device has no memory left: from CubeCL if CUDA refuses, from cudarc, from
/// cuBLAS, and from wgpu.
const NO_MEMORY: [&str; 6] = [
    ALLOCATING,
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "An out-of-memory error happened during launch",
    "wgpu error: Out of Memory",
    "Not enough memory left",
];
const ALLOCATING: &str = "can't allocate buffer of size: ";

/// Parts of the messages that mean that the device is lost.
const LOST: [&str; 9] = [
    "Parent device is lost",
    "Device is lost",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_UNKNOWN",
];

/// Parts of the messages that mean that the driver is older than the libraries.
const OLD_DRIVER: [&str; 4] = [
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    "CUDA driver version is insufficient",
];

/// What cudarc says when a library lacks a function; a driver's is spelled `cuCtxRecordEvent`, those of
/// other libraries `cublasLtCreate`.
const MISSING: &str = "Missing symbol cu";

fn is_old_driver(reason: &str) -> bool {
    let missing = reason.split_once(MISSING).map(|(_, name)| name);
    let of_driver = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
    has(reason, &OLD_DRIVER) || missing.is_some_and(of_driver)
}

/// Whether `reason` is more than [`BackendError::Failed`].
pub(super) fn is_known(reason: &str) -> bool {
    has(reason, &NO_MEMORY) || has(reason, &LOST) || is_old_driver(reason)
}

fn has(reason: &str, words: &[&str]) -> bool {
    words.iter().any(|words| reason.contains(words))
}

impl BackendError {
    /// The error that `reason` describes; `used` is called for the memory of the device.
    pub(super) fn from_words(reason: String, used: impl FnOnce() -> Option<(u64, u64)>) -> Self {
        if has(&reason, &NO_MEMORY) {
            let size = reason.split_once(ALLOCATING).map(|(_, rest)| rest);
            let size = size.and_then(|rest| {
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
                digits?.parse().ok()
            });
            Self::OutOfMemory {
                asked: size,
                used: used(),
            }
        } else if has(&reason, &LOST) {
            Self::Lost { reason }
        } else if is_old_driver(&reason) {
            Self::OldDriver { reason }
        } else {
            Self::Failed { reason }
        }
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Backend::names();
        match self {
            Self::NotBuiltIn => write!(
                f,
                "this build holds {names}; build with `--features {{cuda,wgpu,flex,ndarray}}` for \
                 others"
            ),
            Self::NoDevice { backend, reason } => write!(
                f,
                "the {backend} backend needs {}, and does not start on this machine; --backend \
                 chooses another (this build holds {names})\n  {}",
                backend.needs(),
                first_words(reason),
            ),
            Self::OutOfMemory { asked, used } => {
                write!(f, "the GPU has no memory left")?;
                if let Some(asked) = asked {
                    write!(f, " for another {}", Gib(*asked))?;
                }
                let Some((used, total)) = *used else {
                    return Ok(());
                };
                write!(f, " ({} of {} in use)", Gib(used), Gib(total))?;
                match asked {
                    Some(asked) if *asked > total / 4 => {
                        write!(f, "; CubeCL gives no tensor more than a quarter of it")
                    }
                    _ => Ok(()),
                }
            }
            Self::Lost { reason } => write!(
                f,
                "the GPU is gone ({}); the system's log or nvidia-smi says why, and starting its \
                 driver or the machine anew may bring it back",
                words(reason)
            ),
            Self::OldDriver { reason } => write!(
                f,
                "the GPU's driver is older than the CUDA libraries that are found here ({}); update \
                 the driver, or name libraries of the driver's CUDA version, which nvidia-smi shows, in \
                 LD_LIBRARY_PATH",
                words(reason)
            ),
            Self::Failed { reason } => write!(f, "work on the device failed: {reason}"),
        }
    }
}

impl std::error::Error for BackendError {}

/// Bytes as people count a GPU's.
struct Gib(u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}

/// Of what was said, the part that is known, on one line.
fn words(reason: &str) -> String {
    let known = LOST.iter().chain(&OLD_DRIVER).chain([&MISSING]);
    let begins = known.filter_map(|words| reason.find(words)).min();
    let line = first_words(&reason[begins.unwrap_or(0)..]);
    // From a name on, to where the value that holds it ends.
    line.trim_end_matches(['.', '"', ')', '\''])
        .replace('"', "")
}

/// The beginning of what a library said: some list every file they have tried.
pub(super) fn first_words(reason: &str) -> String {
    const ENOUGH: usize = 160;
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_for(reason: &str) -> BackendError {
        BackendError::from_words(reason.into(), || Some((79 << 30, 80 << 30)))
    }

    /// As CubeCL, cudarc and wgpu say it, in an error's text or around it in a panic's.
    #[test]
    fn memory_that_is_used_up() {
        let of_panic = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: \
                        3221225472\n   0: cubecl_common::backtrace::BackTrace::capture\n";
        let said = error_for(of_panic).to_string();
        assert_eq!(
            said,
            "the GPU has no memory left for another 3.0 GiB (79.0 GiB of 80.0 GiB in use)"
        );
        for reason in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "An error happened during execution\nCaused by:\n  An io error happened during launch\n\
             Caused by:\n  can't allocate buffer of size: 512\n",
            "wgpu error: Out of Memory\n",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            let error = error_for(reason);
            assert!(
                matches!(error, BackendError::OutOfMemory { .. }),
                "{error:?}"
            );
            assert!(is_known(reason));
        }
        let large = error_for(&of_panic.replace("3221225472", "34359738368")).to_string();
        assert!(large.ends_with("a quarter of it"), "{large}");
        let unknown = BackendError::from_words("wgpu error: Out of Memory\n".into(), || None);
        assert_eq!(unknown.to_string(), "the GPU has no memory left");
    }

    #[test]
    fn a_device_that_is_gone() {
        let reason = "called `Result::unwrap()` on an `Err` value: DriverError(\
                      CUDA_ERROR_ECC_UNCORRECTABLE, \"uncorrectable ECC error encountered\")";
        let said = error_for(reason).to_string();
        let expected = "the GPU is gone (CUDA_ERROR_ECC_UNCORRECTABLE, uncorrectable ECC error \
                        encountered); ";
        assert!(said.starts_with(expected), "{said}");
        let wgpu = error_for(
            "wgpu error: Validation Error\n\nCaused by:\n  In Queue::submit\n    Parent \
                         device is lost\n",
        );
        assert!(matches!(wgpu, BackendError::Lost { .. }), "{wgpu:?}");
    }

    #[test]
    fn a_driver_that_is_too_old() {
        let reason = "A compilation error happened during launch\nCaused by:\n  An unknown error: \
                      Unable to load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the \
                      provided PTX was compiled with an unsupported toolchain.\")";
        let said = error_for(reason).to_string();
        assert!(said.contains("older than the CUDA libraries"), "{said}");
        assert!(said.contains("unsupported toolchain); update"), "{said}");
        let symbol = error_for("Missing symbol cuCtxRecordEvent: libcuda.so: undefined symbol");
        assert!(
            matches!(symbol, BackendError::OldDriver { .. }),
            "{symbol:?}"
        );
        let library = error_for("Missing symbol cublasLtCreate: undefined symbol");
        assert!(
            matches!(library, BackendError::Failed { .. }),
            "{library:?}"
        );
    }

    #[test]
    fn what_is_not_known_is_shown() {
        let reason = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")";
        assert!(!is_known(reason));
        let said = error_for(reason).to_string();
        assert_eq!(said, format!("work on the device failed: {reason}"));
    }
}
