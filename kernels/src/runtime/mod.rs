//! Everything that touches the process and the machine: the choice of backend and device, the failures of drivers, and
//! the cache of compiled kernels.
//!
//! This crate sets no panic hook and writes no file unless the program asks for it: a program that computes
//! on a GPU calls [`report_failures`] and [`keep_kernels`] when it starts.

#![cfg_attr(
    not(any(
        feature = "cuda",
        feature = "wgpu",
        feature = "flex",
        feature = "ndarray"
    )),
    allow(dead_code, unreachable_code, unused_variables) // in a build without backends
)]

mod backend;
pub mod collective;
mod devices;
mod failure;
#[cfg(all(feature = "instances", any(feature = "cuda", feature = "wgpu")))]
mod instances;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernel_cache;
mod panics;
#[cfg(feature = "wgpu")]
pub(crate) mod wgpu_setup;

#[cfg(feature = "cuda")]
pub use backend::Cuda;
#[cfg(feature = "flex")]
pub use backend::Flex;
#[cfg(feature = "wgpu")]
pub use backend::Wgpu;
pub use backend::{Backend, Work, check, synchronise};
#[cfg(feature = "reference")]
pub use backend::{NdArray, NdArray64};
pub use devices::{Survey, survey};
pub use failure::BackendError;
#[cfg(all(feature = "instances", any(feature = "cuda", feature = "wgpu")))]
pub use instances::instances;
pub use panics::report_failures;

pub use crate::machine::{Machine, Memory};

/// Lets the first device that is opened after this call keep its compiled kernels in the user's cache folder, so that a
/// machine compiles each kernel only once. Call it before anything is computed on a GPU. Without a GPU backend in the
/// build it has no effect.
pub fn keep_kernels() {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    kernel_cache::ask();
}
