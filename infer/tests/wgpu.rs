//! The program writes the same text on wgpu as on the CPU.
//!
//! ```text
//! cargo test --release -p infer --features wgpu --test wgpu
//! ```
//!
//! Any adapter will do, one that computes on the CPU included. A machine without one skips this, saying
//! so, unless the environment variable `CI` is set.
#![cfg(all(feature = "wgpu", feature = "flex"))]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use kernels::runtime::Backend;
use support::{student_folder, teacher_folder};

fn generate(model: &Path, backend: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["generate", "--max-tokens", "24", "--dtype", "f32"])
        .args(["--backend", backend, "--model"])
        .arg(model)
        .arg("It was the best of times, it was the worst of times")
        .output()
        .unwrap()
}

/// In these texts the logits of the two likeliest tokens never differ by as little as rounding changes them.
#[test]
fn the_likeliest_text_is_the_cpu_s() {
    tests::with_device(
        || Backend::Wgpu.probe(),
        || {
            let (student, hybrid) = (student_folder(&[]), student_folder(&[1]));
            for model in [student.path(), hybrid.path(), &teacher_folder()] {
                let [wgpu, flex] = ["wgpu", "flex"].map(|backend| generate(model, backend));
                let said = String::from_utf8_lossy(&wgpu.stderr);
                assert!(wgpu.status.success(), "{said}");
                assert!(flex.status.success() && !flex.stdout.is_empty());
                assert_eq!(wgpu.stdout, flex.stdout, "{}", model.display());
            }
        },
    );
}
