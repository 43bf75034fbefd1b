//! The `infer` program: `infer --help` is its manual.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use infer::cli::Cli;

mod logging;

fn main() -> ExitCode {
    logging::listen();
    kernels::runtime::report_failures();
    datasets::silence_caught_panics();
    kernels::runtime::keep_kernels();
    match Cli::try_parse() {
        Ok(cli) => match cli.run() {
            Ok(()) => ExitCode::SUCCESS,
            // Each message names its causes itself.
            Err(error) => failure(error),
        },
        Err(said) => show(&said),
    }
}

/// Shows the help or the version, which are results, or what is wrong with the command line.
fn show(said: &clap::Error) -> ExitCode {
    match said.print().and_then(|()| stdout().flush()) {
        Err(error) if !said.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            failure(format!("the help cannot be written: {error}"))
        }
        _ => ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(1)),
    }
}

/// Says why the program fails. If even standard error is closed, the exit code has to do.
fn failure(error: impl Display) -> ExitCode {
    logging::say(format_args!("error: {error}"));
    ExitCode::FAILURE
}
