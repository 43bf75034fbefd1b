//! The CubeCL backend of this build (CUDA before wgpu), and tests that need its device.

use cubecl::Runtime as _;
use kernels::runtime::{Backend, keep_kernels, report_failures};

#[cfg(feature = "cuda")]
use cubecl::cuda::CudaRuntime as Runtime;
#[cfg(not(feature = "cuda"))]
use cubecl::wgpu::WgpuRuntime as Runtime;

#[cfg(feature = "cuda")]
pub type Cube = kernels::runtime::Cuda;
#[cfg(not(feature = "cuda"))]
pub type Cube = kernels::runtime::Wgpu;

/// Runs `test` if there is a device; see [`tests::with_device`].
pub fn with_device(test: impl FnOnce()) {
    let probe = || {
        report_failures();
        // The kernel cache is on, so that the tests fail if a wrong kernel is loaded from it.
        keep_kernels();
        let backend = Backend::preferred().expect("a CubeCL backend is in this build");
        backend.probe()
    };
    tests::with_device(probe, test);
}

/// Whether the device has tensor cores that are programmed by `mma`. Shapes that are for these alone are left out
/// elsewhere: there they add nothing but kernels, which take long to compile.
pub fn has_tensor_cores() -> bool {
    let client = Runtime::client(&Default::default());
    !client.properties().features.matmul.mma.is_empty()
}
