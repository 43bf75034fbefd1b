//! The CubeCL kernels against each op's reference in 64-bit arithmetic, on the CubeCL backend of this
//! build (CUDA before wgpu).
//!
//! ```text
//! cargo test -p kernels-tests --features wgpu --test cube
//! ```
//!
//! One program for all ops: Burn's own kernels, which every program compiles anew, are most of its build.
//!
//! `KERNELS_CASES` is the number of random cases an op (12 by default), `KERNELS_SEED` where they start, and
//! `KERNELS_LENGTH` how long those of the scan are at most. Any adapter will do, one that computes on the CPU
//! included. A machine without one skips these tests, and each prints a line that says so, unless the environment
//! variable `CI` is set.
#![cfg(any(feature = "cuda", feature = "wgpu"))]

mod adamw;
mod attention;
mod attention_step;
mod cast;
mod causal_conv;
mod columns;
mod documents;
mod double_precision;
mod embedding;
mod failures;
mod gelu;
mod hidden_states;
mod layer_norm;
mod linear;
mod mixing_matrices;
mod predictions;
mod projections;
mod queued_read;
mod recorded_scan;
mod recurrent_step;
mod replay;
mod rms_norm;
mod rotary;
mod sample;
mod scan;
mod swiglu;
mod tiled;
mod top_classes;

mod device;
mod support;
