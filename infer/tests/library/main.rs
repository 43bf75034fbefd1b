//! The library, with models in memory.
#![cfg(feature = "flex")]

mod engine;
mod eval;
mod generate;
mod sampling;
mod state_file;

#[path = "../support/known_students.rs"]
mod known_students;
#[path = "../support/mod.rs"]
mod support;
