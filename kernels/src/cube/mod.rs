//! What the ops' GPU kernels share. Each op's own `cube` module holds its kernels, their launch, and the
//! choice between them and the reference.
//!
//! A kernel with two or more optional arguments also takes `_given` at compile time, which of them are
//! there. CubeCL keeps compiled kernels on disk under a hash in which an argument that is absent leaves
//! no trace, so that without it one kernel could be loaded for another (see `runtime::kernel_cache`).

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
pub(crate) use tensors::{empty, inner, own, tensor};
