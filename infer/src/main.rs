//! The `infer` program: `infer --help` is its manual.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    kernels::runtime::report_failures();
    datasets::silence_caught_panics();
    kernels::runtime::keep_kernels();
    match infer::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Each message names its causes itself. If even standard error is closed, the exit code
            // has to do.
            let _ = writeln!(stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
