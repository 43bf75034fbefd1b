//! As one CubeCL launch each: a unit reads its part of a few rows and multiplies it with every vector, on
//! tensor cores where weights have 16 or 8 bits and the device has them.
//!
//! Neighbouring units read neighbouring vectors of a row, so that all reads are whole lines, and a unit
//! has several rows' reads under way at once: that many bytes must be in flight for memory to run at its
//! speed. What is left of a launch is short: the sums of the units that share a row.

pub(crate) mod backend;
mod kernels;
mod launch;
mod mma;
mod multiply;
mod normalise;
mod plan;

pub(crate) use launch::rows;
