//! The CubeCL kernels of a training pass against each op's reference in 64-bit arithmetic, on the CubeCL
//! backend of this build (CUDA before wgpu); as `ops_cube`, in a separate program that is quick to build.
//!
//! ```text
//! cargo test -p kernels --features wgpu,ndarray --test pass_cube
//! ```
#![cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "ndarray"))]

mod adamw;
mod attention;
mod cast;
mod embedding;
mod gelu;
mod hidden_states;
mod layer_norm;
mod linear;
mod predictions;
mod rms_norm;
mod rotary;
mod swiglu;

#[path = "../support/gpu.rs"]
mod gpu;
#[allow(dead_code)]
#[path = "../ops_cube/support.rs"]
mod support;
