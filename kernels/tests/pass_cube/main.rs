//! The CubeCL kernels of a training pass against each op's reference in 64-bit arithmetic, on the CubeCL
//! backend of this build (CUDA before wgpu), and their gradients through autodiff.
//!
//! ```text
//! cargo test --release -p kernels --features wgpu,ndarray --test pass_cube
//! ```
//!
//! The environment variables are those of the `ops_cube` tests.
#![cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "ndarray"))]

mod distillation;
mod embedding;
mod rotary;
mod rows_distance;
#[path = "../ops_cube/support.rs"]
mod support;
