//! The networks, their losses and their gradients on wgpu, against the same recorded vectors as on the
//! CPU: with more than one sequence in the batch, where what is wrong with a GPU's kernels shows.
//!
//! ```text
//! cargo test --release -p tests --features wgpu --test wgpu
//! ```
//!
//! Any adapter will do, one that computes on the CPU included. A machine without one skips these tests,
//! each saying so, unless the environment variable `CI` is set: there one is installed, and that it
//! does not start is a failure.
#![cfg(feature = "wgpu")]

mod support;

use std::io::Write;
use std::sync::OnceLock;

use burn::backend::Autodiff;
use kernels::KernelBackend;
use kernels::backends::{Backend, Wgpu, Work};
use support::*;

/// Runs `test` if there is an adapter.
fn with_adapter(test: impl FnOnce()) {
    struct Nothing;

    impl Work for Nothing {
        type Output = ();

        fn run<B: KernelBackend>(self, _device: B::Device) {}
    }

    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let find = || Some(Backend::Wgpu.dispatch(Nothing).err()?.to_string());
    match MISSING.get_or_init(find) {
        None => test(),
        Some(reason) if std::env::var_os("CI").is_some() => panic!("{reason}"),
        Some(reason) => {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("a test");
            let reason = reason.lines().next().unwrap_or_default();
            // Not by eprintln!, whose output the harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "{name} skipped: {reason}");
        }
    }
}

#[test]
fn scan_equals_the_recording() {
    with_adapter(|| ssd::scan_equals_the_recording::<Autodiff<Wgpu>>(FAST));
}

#[test]
fn extreme_decays_stay_finite() {
    with_adapter(ssd::extreme_decays_stay_finite::<Autodiff<Wgpu>>);
}

#[test]
fn student() {
    with_adapter(|| {
        student::whole_sequence::<Wgpu>(FAST);
        student::decoding::<Wgpu>(FAST);
        student::greedy::<Wgpu>();
        student::splits::<Wgpu>(FAST);
        student::joining::<Wgpu>(FAST);
        student::eight_bits::<Wgpu>();
    });
}

#[test]
fn teacher() {
    with_adapter(|| {
        teacher::whole_sequence::<Wgpu>(FAST);
        teacher::splits::<Wgpu>(FAST);
        teacher::decoding::<Wgpu>(FAST);
    });
}

#[test]
fn perplexity() {
    with_adapter(teacher::perplexity_is_exact::<Wgpu>);
}

/// All of the text, which takes an adapter that computes on the CPU minutes.
#[test]
#[ignore = "slow without a GPU; the same on fewer windows is tested above"]
fn perplexity_of_all_the_text() {
    with_adapter(teacher::perplexity_is_the_recorded::<Wgpu>);
}

#[test]
fn stage1() {
    with_adapter(|| mohawk::stage1::<Autodiff<Wgpu>>(FAST));
}

#[test]
fn stage2() {
    with_adapter(|| mohawk::stage2::<Autodiff<Wgpu>>(FAST));
}

#[test]
fn stage3() {
    with_adapter(|| mohawk::stage3::<Autodiff<Wgpu>>(FAST));
}
