//! The CubeCL kernels of a training pass against each op's reference in 64-bit arithmetic, on the CubeCL
//! backend of this build (CUDA before wgpu); see `ops_cube` for how to run and skip them.
#![cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "ndarray"))]

mod attention;
#[path = "../ops_cube/support.rs"]
#[allow(dead_code)]
mod support;
