//! The program and its commands, as their user meets them.
#![cfg(feature = "flex")]

mod bad_input;
mod command;
mod eval_command;
mod hub;
mod info;
mod repl;

#[path = "../support/mod.rs"]
mod support;
