//! `train compare`: its arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::report::Comparison;

/// Draws runs over each other on one page, and prints their results in one table.
///
/// The page is one HTML file with the losses of each stage, the perplexities, and the keys of the configurations that
/// differ. The runs need not be finished.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The folders of the runs
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// The file for the page
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    out: PathBuf,
}

impl CompareArgs {
    /// Writes the page, and prints the table.
    ///
    /// # Errors
    /// Those of [`Comparison::read`], and that the page cannot be written.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let comparison = Comparison::read(&self.runs)?;
        comparison.write(&self.out)?;
        print(format_args!("{comparison}\n\npage  {}", self.out.display()))
    }
}
