//! What an optimiser does with gradients.

pub mod adamw;
