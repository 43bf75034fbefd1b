//! The CubeCL kernels against each op's reference in 64-bit arithmetic, on the CubeCL backend of this
//! build (CUDA before wgpu).
//!
//! ```text
//! cargo test -p kernels --features wgpu,ndarray --test ops_cube
//! ```
//!
//! `KERNELS_CASES` is the number of random cases an op (12 by default) and `KERNELS_SEED` where they
//! start. Any adapter will do, one that computes on the CPU included. A machine without one skips these
//! tests, and each prints a line that says so, unless the environment variable `CI` is set.
#![cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "ndarray"))]

mod attention_step;
mod causal_conv;
mod double_precision;
mod failures;
mod mixing_matrices;
mod projections;
mod recurrent_step;
mod sample;

#[path = "../support/gpu.rs"]
mod gpu;
mod support;
