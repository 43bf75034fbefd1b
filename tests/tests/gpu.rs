//! The networks, their losses and their gradients on the GPU backend of this build (CUDA before wgpu),
//! against the same recorded vectors as on the CPU: with more than one sequence in the batch, where what
//! is wrong with a GPU's kernels shows.
//!
//! ```text
//! cargo test -p tests --features wgpu --test gpu
//! ```
//!
//! `tests/on_gpu` builds, packs and runs this and the kernels' tests on a machine with an NVIDIA GPU.
//!
//! Any adapter will do for wgpu, one that computes on the CPU included. A machine without one skips these tests,
//! each saying so, unless the environment variable `CI` is set: there one is installed, and that it
//! does not start is a failure.
#![cfg(any(feature = "cuda", feature = "wgpu"))]

mod support;

use burn::backend::Autodiff;
use kernels::runtime::{Backend, keep_kernels, report_failures};
use support::{passes, perplexity};
use tests::networks::{FAST, mohawk, student, teacher};

#[cfg(feature = "cuda")]
use kernels::runtime::Cuda as Gpu;
#[cfg(not(feature = "cuda"))]
use kernels::runtime::Wgpu as Gpu;

#[cfg(feature = "cuda")]
const BACKEND: Backend = Backend::Cuda;
#[cfg(not(feature = "cuda"))]
const BACKEND: Backend = Backend::Wgpu;

/// What Burn differentiates, as matrices that no stage computes whole: on CUDA the gradients are Burn's own
/// products, which round f32 to TF32 and so keep 11 bits.
#[cfg(feature = "cuda")]
const COMPOSED: f64 = 1e-3;
#[cfg(not(feature = "cuda"))]
const COMPOSED: f64 = FAST;

/// Runs `test` if there is an adapter.
fn with_adapter(test: impl FnOnce()) {
    let probe = || {
        report_failures();
        keep_kernels();
        BACKEND.probe()
    };
    tests::with_device(probe, test);
}

#[test]
fn student() {
    with_adapter(|| {
        student::whole_sequence::<Gpu>(FAST);
        student::decoding::<Gpu>(FAST);
        student::greedy::<Gpu>();
        student::splits::<Gpu>(FAST);
        student::joining::<Gpu>(FAST);
        student::interrupted_steps::<Gpu>(FAST);
        student::eight_bits::<Gpu>();
    });
}

#[test]
fn teacher() {
    with_adapter(|| {
        teacher::whole_sequence::<Gpu>(FAST);
        teacher::splits::<Gpu>(FAST);
        teacher::decoding::<Gpu>(FAST);
        teacher::greedy::<Gpu>();
        teacher::joining::<Gpu>(FAST);
        teacher::eight_bits::<Gpu>();
    });
}

#[test]
fn perplexity() {
    with_adapter(perplexity::perplexity_is_exact::<Gpu>);
}

/// All of the text, which takes an adapter that computes on the CPU minutes.
#[test]
#[ignore = "slow without a GPU; the same on fewer windows is tested above"]
fn perplexity_of_all_the_text() {
    with_adapter(perplexity::perplexity_is_the_recorded::<Gpu>);
}

#[test]
fn stage1() {
    with_adapter(|| {
        for recorded in mohawk::RECORDED {
            mohawk::stage1::<Autodiff<Gpu>>(recorded, COMPOSED);
        }
    });
}

#[test]
fn stage2() {
    with_adapter(|| {
        for recorded in mohawk::RECORDED {
            mohawk::stage2::<Autodiff<Gpu>>(recorded, FAST);
        }
    });
}

#[test]
fn stage3() {
    with_adapter(|| {
        for recorded in mohawk::RECORDED {
            mohawk::stage3::<Autodiff<Gpu>>(recorded, FAST);
        }
    });
}

/// The training loop's own passes, every gradient of them.
#[test]
fn passes() {
    with_adapter(|| {
        for recorded in mohawk::RECORDED {
            passes::stages::<Autodiff<Gpu>>(recorded, FAST);
        }
    });
}

/// The same in half precision.
#[cfg(feature = "cuda")]
#[test]
fn passes_in_bf16() {
    with_adapter(|| passes::stages_in_bf16::<Autodiff<Gpu>>(0.02, 0.06));
}
