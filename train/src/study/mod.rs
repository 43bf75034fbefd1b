//! Questions about structure and budgets, each answered by one command: a table, the same as JSON, and a page.
//!
//! - [`matrices`]: how well structured matrices approximate a teacher's attention matrices;
//! - [`budgets`]: how a budget of tokens is best split over the stages.
//!
//! Each writes into a folder what it has computed as soon as it has it, and the same call goes on from there.

pub mod budgets;
pub mod matrices;
