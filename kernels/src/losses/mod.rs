//! The distillation losses, which compare a student with its teacher: one op for each stage of the paper (arXiv
//! 2408.10189).

pub mod divergence;
pub mod hidden_states;
pub mod mixing_matrices;
pub mod predictions;
pub mod scale;
