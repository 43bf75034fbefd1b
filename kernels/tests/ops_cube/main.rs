//! The CubeCL kernels against each op's reference in 64-bit arithmetic, on the CubeCL backend of this
//! build (CUDA before wgpu).
//!
//! ```text
//! cargo test --release -p kernels --features wgpu,ndarray --test ops_cube
//! ```
//!
//! `KERNELS_CASES` is the number of random cases an op (12 by default) and `KERNELS_SEED` where they
//! start. Any adapter will do, one that computes on the CPU included. A machine without one skips these
//! tests, each saying so, unless the environment variable `CI` is set.
#![cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "ndarray"))]

mod attention_step;
mod choice;
mod conv;
mod distance;
mod guard;
mod matvec;
mod step;
mod support;
