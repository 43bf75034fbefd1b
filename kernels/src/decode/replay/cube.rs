//! On CubeCL's backends.

use burn::tensor::{Int, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::{Replay, Step, Taken};

impl<R, F, I, T> Replay for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn record(ids: Tensor<Self, 1, Int>, step: &mut Step<'_, Self>) -> Taken<Self> {
        #[cfg(feature = "cuda")]
        if crate::cube::is_cuda::<R>() {
            return super::cuda::record(ids, step);
        }
        #[cfg(feature = "wgpu")]
        {
            super::wgpu::record(ids, step)
        }
        #[cfg(not(feature = "wgpu"))]
        {
            (step(ids), None)
        }
    }
}
