//! The backends that this build holds, and the way from a name to code that is generic over them.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use kernels::KernelBackend;

/// A backend of this build: each is there if the cargo feature of its name is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// NVIDIA GPUs.
    #[cfg(feature = "cuda")]
    Cuda,
    /// GPUs through Vulkan, Metal or DirectX 12.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// The CPU, with this project's own kernels.
    #[cfg(feature = "flex")]
    Flex,
    /// The CPU, with every kernel in its plainest form.
    #[cfg(feature = "ndarray")]
    NdArray,
}

/// The backends of this build under the names that `--backend` takes, the preferred ones first.
const BACKENDS: &[(&str, Backend)] = &[
    #[cfg(feature = "cuda")]
    ("cuda", Backend::Cuda),
    #[cfg(feature = "wgpu")]
    ("wgpu", Backend::Wgpu),
    #[cfg(feature = "flex")]
    ("flex", Backend::Flex),
    #[cfg(feature = "ndarray")]
    ("ndarray", Backend::NdArray),
];

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// This build lacks it.
    #[error(
        "this build holds {}; build with `--features {{cuda,wgpu,flex,ndarray}}` for others",
        Backend::names()
    )]
    NotBuiltIn,
    /// It has no device here that works.
    #[error(
        "the {backend} backend does not start on this machine: {reason}\n\
         (--backend chooses another; this build holds {})",
        Backend::names()
    )]
    NoDevice {
        /// The backend.
        backend: Backend,
        /// What the driver or its library said.
        reason: String,
    },
}

impl Backend {
    /// The names of this build's backends, the preferred ones first: "cuda, flex".
    pub fn names() -> String {
        let names: Vec<_> = BACKENDS.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = BACKENDS.iter().find(|(_, it)| it == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

impl Default for Backend {
    /// The preferred one: cuda before wgpu before flex before ndarray.
    fn default() -> Self {
        BACKENDS[0].1
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        let found = BACKENDS.iter().find(|(known, _)| *known == name);
        found.map(|(_, it)| *it).ok_or(BackendError::NotBuiltIn)
    }
}

/// Calls a function that is generic over the backend with the one chosen at run time.
///
/// `on_backend!(backend, work(a, b))` is `work::<B>(a, b)`.
macro_rules! on_backend {
    ($backend:expr, $work:ident($($argument:expr),*)) => {
        match $backend {
            #[cfg(feature = "cuda")]
            $crate::backend::Backend::Cuda => $work::<kernels::backends::Cuda>($($argument),*),
            #[cfg(feature = "wgpu")]
            $crate::backend::Backend::Wgpu => $work::<kernels::backends::Wgpu>($($argument),*),
            #[cfg(feature = "flex")]
            $crate::backend::Backend::Flex => $work::<kernels::backends::Flex>($($argument),*),
            #[cfg(feature = "ndarray")]
            $crate::backend::Backend::NdArray => $work::<kernels::backends::NdArray>($($argument),*),
        }
    };
}
pub(crate) use on_backend;

/// The default device of `backend`, which is `B`, once it has proved to work.
///
/// # Errors
///
/// [`BackendError::NoDevice`]. Where a driver or a GPU is missing, CubeCL panics, on a thread of its
/// own; this is where that becomes an error.
pub fn open_device<B: KernelBackend>(backend: Backend) -> Result<B::Device, BackendError> {
    let first_panic = Arc::new(OnceLock::new());
    let heard = first_panic.clone();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        heard.get_or_init(|| {
            panic
                .payload_as_str()
                .unwrap_or("no reason given")
                .to_owned()
        });
    }));
    let device = B::Device::default();
    let proof = panic::catch_unwind(AssertUnwindSafe(|| {
        Tensor::<B, 1>::ones([1], &device).try_into_data()
    }));
    panic::set_hook(hook);

    let reason = match proof {
        Ok(Ok(_)) => return Ok(device),
        Ok(Err(error)) => error.to_string(),
        Err(_) => first_panic.get().cloned().unwrap_or_default(),
    };
    Err(BackendError::NoDevice { backend, reason })
}
