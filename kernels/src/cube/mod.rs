//! Code that the GPU kernels of several ops share. Each op's own `cube` module holds its kernels, their launches, and
//! the choice between them and the reference.
//!
//! The comments use CubeCL's terms: a *unit* is a thread, a *plane* is a warp (subgroup), and a *cube* is a thread
//! block (workgroup).
//!
//! A kernel with two or more optional arguments also takes the compile-time argument `_given`, which says which of
//! them are present. CubeCL keeps compiled kernels on disk under a hash, and an absent optional argument does not
//! change this hash. Without `_given`, one kernel could be loaded in place of another (see `runtime::kernel_cache`).

pub(crate) mod column_sums;
#[cfg(feature = "cuda")]
pub(crate) mod cuda_stream;
pub(crate) mod documents;
pub(crate) mod each_row;
pub(crate) mod fragments;
pub(crate) mod launch_cache;
#[cfg(feature = "wgpu")]
pub(crate) mod noted_launches;
pub(crate) mod output_pool;
pub(crate) mod plane_products;
pub(crate) mod recording;
pub(crate) mod reduce;
pub(crate) mod row_teams;
pub(crate) mod rows;
pub(crate) mod sigmoid;
mod sizes;
pub(crate) mod step_counter;
mod tensors;
pub(crate) mod tiles;
pub(crate) mod together;

pub(crate) use sizes::{address_type, computes_in_f32, flat_vector_size, is_cuda, vector_size};
pub(crate) use tensors::{empty, in_vectors, inner, own, tensor};
