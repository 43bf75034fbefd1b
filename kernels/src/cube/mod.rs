//! The CubeCL backends: which ops have kernels of their own on CUDA and wgpu.
//!
//! Each op's own `cube.rs` holds its kernels and their launch; here is what they share, and the choice
//! between them and the reference.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::KernelBackend;

impl<R, F, I, T> KernelBackend for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
}
