//! As one CubeCL launch each. Reads of many bytes must be under way for memory to run at its speed, from a launch's
//! first moment, while the vectors are normalised, to its last sums of the units that share a row.
//!
//! Without tensor cores a unit reads its part of a few rows into registers and multiplies it with every vector;
//! neighbouring units read neighbouring vectors of a row, so that all reads are whole lines. On tensor cores planes
//! copy rows to shared memory ahead of what they multiply, and a cube stays for as many rows as fall to its
//! multiprocessor.

mod backend;
mod kernels;
mod launch;
mod mma;
mod multiply;
mod normalise;
mod numbers;
mod plan;
mod ring;
mod to_float;
mod walk;
