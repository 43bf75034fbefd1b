//! Questions about structure and budgets. One command answers each with a table, the same as JSON, and a page.
//!
//! - [`matrices`]: how well structured matrices approximate a teacher's attention matrices;
//! - [`budgets`]: how a budget of tokens is best split over the stages.
//!
//! Each study saves its partial results in a folder as soon as it has them, and the same call continues from there.

pub mod budgets;
pub mod matrices;
