//! The concrete backends, each behind its cargo feature, and the way from a name typed by a user to
//! code that is generic over them.
//!
//! The GPU ones are CubeCL backends without the fusion decorator. Fusion rewrites graphs of
//! element-wise operations at run time and, in this line of Burn, changes results of models like
//! ours (burn issues 4366 and 5122).

use std::panic::{self, AssertUnwindSafe};
use std::str::FromStr;

use burn::tensor::Tensor;

use crate::KernelBackend;

/// Multi-threaded CPU backend with this crate's own fast paths; f32.
#[cfg(feature = "flex")]
pub type Flex = burn_flex::Flex;

/// CPU backend whose every op is the reference; f32.
#[cfg(feature = "ndarray")]
pub type NdArray = burn_ndarray::NdArray<f32>;

/// [`NdArray`] in f64: what gradients are checked on.
#[cfg(feature = "ndarray")]
pub type NdArray64 = burn_ndarray::NdArray<f64>;

/// GPUs through Vulkan, Metal, DirectX 12 or WebGPU; f32.
#[cfg(feature = "wgpu")]
pub type Wgpu = burn_cubecl::CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// NVIDIA GPUs; f32 by default, half precision by explicit casts.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cubecl::CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

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
#[derive(Debug)]
pub enum BackendError {
    /// This build lacks it.
    NotBuiltIn,
    /// It has no device here that works; what the driver or its library said.
    NoDevice(String),
}

impl std::fmt::Display for BackendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = Backend::names();
        match self {
            Self::NotBuiltIn => write!(
                f,
                "this build holds {names}; build with `--features {{cuda,wgpu,flex,ndarray}}` for \
                 others"
            ),
            Self::NoDevice(reason) => write!(
                f,
                "this backend does not start on this machine: {reason}\n(--backend chooses \
                 another; this build holds {names})"
            ),
        }
    }
}

impl std::error::Error for BackendError {}

/// Work that is generic over the backend, for [`Backend::dispatch`].
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it on `B`'s default device, which has proved to work.
    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output;
}

impl Backend {
    /// The names of this build's backends, the preferred ones first: `cuda, flex`.
    pub fn names() -> String {
        let names: Vec<_> = BACKENDS.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// The name that `--backend` takes.
    pub fn name(self) -> &'static str {
        let found = BACKENDS.iter().find(|(_, backend)| *backend == self);
        found.map_or("", |(name, _)| name)
    }

    /// The preferred backend of this build: cuda before wgpu before flex before ndarray; `None` if it
    /// was built without any.
    pub fn preferred() -> Option<Self> {
        BACKENDS.first().map(|(_, backend)| *backend)
    }

    /// Does `work` on this backend.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`]. CubeCL panics where a driver or a GPU is missing; this is where
    /// that becomes an error.
    pub fn dispatch<W: Work>(self, work: W) -> Result<W::Output, BackendError> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(work.run::<Cuda>(open_device::<Cuda>()?)),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(work.run::<Wgpu>(open_device::<Wgpu>()?)),
            #[cfg(feature = "flex")]
            Self::Flex => Ok(work.run::<Flex>(open_device::<Flex>()?)),
            #[cfg(feature = "ndarray")]
            Self::NdArray => Ok(work.run::<NdArray>(open_device::<NdArray>()?)),
        }
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        let found = BACKENDS.iter().find(|(known, _)| *known == name);
        found.map(|(_, it)| *it).ok_or(BackendError::NotBuiltIn)
    }
}

/// The default device of a backend, once it has proved to work.
fn open_device<B: KernelBackend>() -> Result<B::Device, BackendError> {
    let device = B::Device::default();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let proof = panic::catch_unwind(AssertUnwindSafe(|| {
        Tensor::<B, 1>::ones([1], &device).try_into_data()
    }));
    panic::set_hook(hook);

    let reason = match proof {
        Ok(Ok(_)) => return Ok(device),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => match panic.downcast::<&str>() {
                Ok(message) => (*message).into(),
                Err(_) => "its driver gives no reason".into(),
            },
        },
    };
    Err(BackendError::NoDevice(reason))
}
