//! One CubeCL launch for each op. The memory reaches its full speed only if reads of many bytes are under way all the
//! time: from the start of a launch, while the vectors are normalised, until the last sums over the units that share a
//! row.
//!
//! Without tensor cores, a unit reads its part of a few rows into registers and multiplies it with every vector;
//! neighbouring units read neighbouring vectors of a row, so that all reads are whole cache lines. On tensor cores,
//! planes copy rows to shared memory before they are needed, and one cube on each multiprocessor computes all rows of
//! that multiprocessor. Weights in floats are multiplied in TF32 (`mma`), packed ones as whole numbers (`integers`) with
//! the vectors in digits of 8 bits (`digits`); for more than four vectors of `out_of` four cubes share rows, and so the
//! making of digits (`group`).

mod backend;
mod digits;
mod group;
mod integers;
mod kernels;
mod launch;
mod mma;
mod multiply;
mod normalise;
mod numbers;
mod operands;
mod plan;
mod ring;
mod to_float;
mod walk;
