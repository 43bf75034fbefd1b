//! The ops of MOHAWK and of discrete Mamba-2 networks, for Burn: the SSD scan, the three distillation
//! losses, and the layers around them, each with a backward pass that is written out by hand.
//!
//! Burn has some of these (a linear layer, GELU, layer normalisation, attention, AdamW). They are here
//! because Burn's keep more intermediates alive than they need, read memory more often, or leave the order
//! of a sum open; each op's page says which.
//!
//! # Why a backend-extension trait
//!
//! Everything above this crate is generic over [`KernelBackend`], the sum of one trait for each op. An op's trait has
//! one method for the op and one for its backward pass, each with a default body in plain tensor operations. A
//! backend with a faster implementation overrides the method, and no caller changes. The alternatives are worse: ops
//! composed from tensors alone are too slow everywhere (a scan's backward pass is hundreds of small tensors, AdamW
//! reads each parameter a dozen times), and functions that match on a concrete backend would make the networks know
//! which backends exist.
//!
//! The ops are implemented for Burn's `Flex`, `NdArray` and CubeCL (CUDA, wgpu) backends, and for `Autodiff`
//! over them. Another backend needs an `impl` of each trait in this crate, which can be empty.
//!
//! # An op is a folder
//!
//! - `mod.rs`: the contract: shapes, dtypes, equations, the op's trait, and the function that callers use,
//!   which checks shapes and flattens leading dimensions.
//! - `reference.rs`: the definition in tensor operations, forward and analytic backward. Everything
//!   faster is tested against it, and it is tested against recorded vectors in 64-bit arithmetic.
//! - `flex.rs`: the same on slices, for Burn's `Flex` CPU backend.
//! - `cube.rs`: the same as CubeCL kernels, for GPUs.
//! - `autodiff.rs`: how the backward pass is put on Burn's graph. Backward passes are not left to autodiff,
//!   since a composed scan would keep every intermediate alive.
//! - `NOTES.md`, where the op was tuned: what was measured.
//!
//! Outside its folder an op has a line in the `mod.rs` of its family, a line in the list of
//! [`KernelBackend`], and a re-export.
//!
//! # Precision
//!
//! The scan, attention, the normalisations, the losses and the norms of gradients widen half-precision inputs to f32
//! before they compute, and so does every kernel on a GPU. All other ops compute in the dtype of their inputs. The
//! ops of a decoding step ([`decode`]) take f32 vectors and weights of any dtype.
//!
//! If the fast path of an op does not support a dtype or a size, the op is computed by its reference, on every
//! backend. That is slower, but the precision is always the one described above.
//!
//! # What touches the process
//!
//! Choosing a backend, failures of devices and the cache of compiled kernels are in [`runtime`]. No panic
//! hook is set and no file is written unless the program asks for it there.

#![deny(missing_docs)]

#[macro_use]
mod by_default;

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod decode;
pub mod dense;
mod documents;
mod dtype;
#[cfg(feature = "flex")]
mod flex;
mod groups;
mod kernel_backend;
pub mod losses;
mod machine;
pub mod optim;
mod product;
pub mod profile;
pub mod runtime;
pub mod scan;

pub use decode::attention_step::{attention_step, attention_step_within};
pub use decode::recurrent_step::{HeadNorm, StepParameters, StepState, Turn, recurrent_step};
pub use decode::sample::sample;
pub use dense::attention::{
    Visible, Window, attention, attention_matrix, attention_matrix_within, attention_within,
};
pub use dense::bias::add_bias;
pub use dense::cast::cast_all;
pub use dense::columns::{extend_columns, split_columns};
pub use dense::embedding::embedding;
pub use dense::gelu::gelu_new;
pub use dense::layer_norm::layer_norm;
pub use dense::linear::{linear, linear_gelu, linear_onto};
pub use dense::rms_norm::rms_norm;
pub use dense::rotary::{rotary, rotary_of_heads};
pub use dense::swiglu::swiglu;
pub use documents::DocumentStarts;
pub use kernel_backend::{KernelBackend, TrainBackend};
pub use losses::divergence::likeliest::likeliest;
pub use losses::divergence::top_classes::{TopClasses, TopClassesInputs, top_classes_block};
pub use losses::divergence::{Comparison, Divergence, divergence_block, divergence_loss};
pub use losses::hidden_states::rows_distance;
pub use losses::mixing_matrices::{
    AttentionParts, TransferParts, mixing_distance, transfer_matrix,
};
pub use losses::predictions::{
    DistillationWeights, cross_entropy, distillation_block, distillation_loss,
};
pub use optim::adamw::{AdamWStep, adamw_step, adamw_steps, squared_norm, squared_norms};
pub use scan::causal_conv::{ConvGradients, causal_conv, causal_conv_of};
pub use scan::skip_gate::{SkipGateGradients, skip_gate};
pub use scan::ssd::{
    Epilogue, GatedScan, GatedScanGradients, ScanInputs, SsdGradients, gated_scan, ssd_scan,
};

/// The example of the README compiles and runs.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
struct Readme;
