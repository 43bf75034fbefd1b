//! The concrete backends, each behind its cargo feature, and the way from a name typed by a user to
//! code that is generic over them.
//!
//! The GPU ones are CubeCL backends without the fusion decorator. Fusion rewrites graphs of
//! element-wise operations at run time and, in this line of Burn, changes results of models like
//! ours (burn issues 4366 and 5122).

use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;

use super::failure::BackendError;
use super::{devices, panics};
use crate::kernel_backend::KernelBackend;
use crate::machine::Machine;

/// Multi-threaded CPU backend with this crate's own fast paths; f32.
#[cfg(feature = "flex")]
pub type Flex = burn_flex::Flex;

/// CPU backend whose every op is the reference; f32.
#[cfg(feature = "reference")]
pub type NdArray = burn_ndarray::NdArray<f32>;

/// [`NdArray`] in f64: what gradients are checked on.
#[cfg(feature = "reference")]
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

/// The requirement of the CPU backends, which every machine meets.
const A_CPU: &str = "a CPU";

/// Work that is generic over the backend, for [`Backend::dispatch`].
pub trait Work: Send {
    /// The result of the work.
    type Output: Send;

    /// Runs the work on `device`, which is known to work.
    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output;
}

impl Backend {
    /// The number of GPUs that the program can use, if this is CUDA and its driver is installed.
    pub fn gpus(self) -> Option<usize> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                // Without a driver's library, cudarc panics.
                let count = panics::quietly(cudarc::driver::CudaContext::device_count);
                let count = count.ok()?.ok()?;
                usize::try_from(count).ok()
            }
            #[allow(unreachable_patterns)] // in a build with CUDA alone
            _ => None,
        }
    }

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

    /// What a machine needs for this backend, in words.
    pub(super) fn needs(self) -> &'static str {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => "an NVIDIA GPU, its driver and the CUDA toolkit's libraries",
            #[cfg(feature = "wgpu")]
            Self::Wgpu => "a GPU with a driver for Vulkan, Metal or DirectX 12",
            #[cfg(feature = "flex")]
            Self::Flex => A_CPU,
            #[cfg(feature = "ndarray")]
            Self::NdArray => A_CPU,
        }
    }

    /// The preferred backend of this build: cuda before wgpu before flex before ndarray; `None` if it
    /// was built without any.
    pub fn preferred() -> Option<Self> {
        BACKENDS.first().map(|(_, backend)| *backend)
    }

    /// The preferred backend of this build that computes on the CPU.
    pub fn on_host() -> Option<Self> {
        let mut backends = BACKENDS.iter().map(|(_, backend)| *backend);
        backends.find(|backend| backend.needs() == A_CPU)
    }

    /// Opens the backend's default device and lets it compute one number.
    ///
    /// # Errors
    /// As [`Backend::dispatch`].
    pub fn probe(self) -> Result<(), BackendError> {
        struct Nothing;

        impl Work for Nothing {
            type Output = ();

            fn run<B: KernelBackend>(self, _device: B::Device) {}
        }

        self.dispatch(Nothing)
    }

    /// Runs `work` on this backend.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`] if a driver or a GPU is missing (CubeCL panics on another thread then; this function
    /// turns the panic into an error). If any work that `work` queued has failed, the error of [`synchronise`], whether
    /// `work` returned or panicked. If `work` reads results before it ends, it must call [`synchronise`] before it
    /// trusts them. Failures of queued work are detected only if the program has called
    /// [`report_failures`](super::report_failures).
    pub fn dispatch<W: Work>(self, work: W) -> Result<W::Output, BackendError> {
        self.dispatch_on(0, work)
    }

    /// [`dispatch`](Self::dispatch) on GPU `number`, from 0, of those that the program sees, where the backend is
    /// CUDA; the others have one device.
    ///
    /// # Errors
    /// Those of [`dispatch`](Self::dispatch).
    pub fn dispatch_on<W: Work>(self, number: usize, work: W) -> Result<W::Output, BackendError> {
        #[cfg(not(feature = "cuda"))]
        let _ = number;
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                let device = cubecl::cuda::CudaDevice::new(number);
                let device = open_device::<Cuda>(self, device)?;
                guarded::<Cuda, W>(work, device)
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu => {
                // Before CubeCL is used for the first time, which is when it looks for its settings.
                super::kernel_cache::keep(self);
                super::wgpu_setup::open();
                guarded::<Wgpu, W>(work, open_device::<Wgpu>(self, Default::default())?)
            }
            #[cfg(feature = "flex")]
            Self::Flex => {
                let device = open_device::<Flex>(self, Default::default())?;
                // The work runs on a thread of Rayon's pool, which the ops' parallel loops use: on any other thread,
                // each op would put the caller to sleep and wake it up again. If the pool has only one thread, the work
                // runs outside of it: otherwise, work that waits for another thread which needs the pool would wait for
                // ever.
                if rayon::current_num_threads() > 1 {
                    Ok(rayon::scope(|_| work.run::<Flex>(device)))
                } else {
                    Ok(work.run::<Flex>(device))
                }
            }
            #[cfg(feature = "ndarray")]
            Self::NdArray => {
                let device = open_device::<NdArray>(self, Default::default())?;
                Ok(work.run::<NdArray>(device))
            }
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        let found = BACKENDS.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, backend)| *backend)
            .ok_or(BackendError::NotBuiltIn)
    }
}

/// Waits until all work that this thread has queued on `device` is done.
///
/// # Errors
/// [`BackendError::OutOfMemory`], [`BackendError::Lost`], [`BackendError::OldDriver`] or [`BackendError::Failed`] if
/// any of this work, or of the work that any thread has queued on a GPU, has failed since the last call. (A launch
/// returns before it is known whether it succeeds.) Panics of device threads are detected only after
/// [`report_failures`](super::report_failures).
pub fn synchronise<B: Machine>(device: &B::Device) -> Result<(), BackendError> {
    let synchronised = B::sync(device);
    check::<B>(device)?;
    synchronised.map_err(|error| failed::<B>(device, format!("{error:?}")))
}

/// Reports the failures that are known by now, as [`synchronise`] does, but without waiting.
///
/// # Errors
/// Those of [`synchronise`].
pub fn check<B: Machine>(device: &B::Device) -> Result<(), BackendError> {
    match panics::take() {
        Some(reason) => Err(failed::<B>(device, reason)),
        None => Ok(()),
    }
}

/// The error of work on `device` that failed for `reason`.
fn failed<B: Machine>(device: &B::Device, reason: String) -> BackendError {
    BackendError::from_words(reason, || devices::used_memory::<B>(device))
}

/// Runs `work`, and returns an error if any work that it queued has failed.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn guarded<B: KernelBackend, W: Work>(
    work: W,
    device: B::Device,
) -> Result<W::Output, BackendError> {
    let done = panics::caught(|| work.run::<B>(device.clone()));
    let output = done.map_err(|reason| failed::<B>(&device, reason))?;
    synchronise::<B>(&device)?;
    Ok(output)
}

/// `device` of `backend`, which is `B`, once it has proved to work.
fn open_device<B: KernelBackend>(
    backend: Backend,
    device: B::Device,
) -> Result<B::Device, BackendError> {
    let proof = panics::quietly(|| {
        // Before CubeCL is used for the first time, which is when it looks for its settings.
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        super::kernel_cache::keep(backend);
        Tensor::<B, 1>::ones([1], &device).try_into_data()
    });
    let reason = match proof {
        Ok(Ok(_)) => return Ok(device),
        Ok(Err(error)) => error.to_string(),
        Err(reason) => reason,
    };
    match BackendError::from_words(reason, || None) {
        BackendError::Failed { reason } => Err(BackendError::NoDevice { backend, reason }),
        known => Err(known),
    }
}
