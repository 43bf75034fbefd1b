//! The CubeCL kernels against each op's reference in 64-bit arithmetic, on the CubeCL backend of this
//! build (CUDA before wgpu).
//!
//! ```text
//! cargo test -p kernels-tests --features wgpu --test cube
//! ```
//!
//! All ops are tested by one program, because most of its build time is for Burn's own kernels, which every program
//! compiles again.
//!
//! `KERNELS_CASES` is the number of random cases for each op (12 by default), `KERNELS_SEED` the first seed, and
//! `KERNELS_LENGTH` the largest length in cases of the scan. Any adapter can be used, also one that computes on the
//! CPU. On a machine without an adapter these tests are skipped, and each prints a line that says so; but if the
//! environment variable `CI` is set, they fail.
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
#[cfg(feature = "cuda")]
mod ranks;
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
