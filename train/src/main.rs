//! The `train` program: `train --help` is its manual.

use std::process::ExitCode;

use clap::Parser;
use train::cli::Cli;

/// Training allocates and frees the same large buffers at every step. The system's allocator returns their pages to the
/// system each time, and page faults bring them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kernels::runtime::report_failures();
    datasets::silence_caught_panics();
    kernels::runtime::keep_kernels();
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // Each message names its causes itself.
            train::logging::say(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
