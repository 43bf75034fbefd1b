//! Times of the ops on the backend of this build, in one table:
//!
//! ```text
//! cargo bench -p kernels --features cuda     # or wgpu, or flex
//! ```
//!
//! Each time is a median over rounds, beside what the op must move at least (every input read once, every
//! output written once) as a share of the bandwidth that a copy reaches here, and the rate of its matrix
//! products. On a CPU, and wherever `KERNELS_BENCH=small` asks for it, the shapes are small, and the last
//! columns have the times of the same op in tensor operations. Words after `--` choose rows by op.

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod attention;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod causal_conv;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod clock;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod layers;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod linear;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod losses;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod mixing_matrices;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod pass;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod projections;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod recurrent_step;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod scan;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
mod table;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod tiled;

fn main() {
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "flex"))]
    table::print();
    #[cfg(not(any(feature = "cuda", feature = "wgpu", feature = "flex")))]
    println!("built without cuda, wgpu and flex: nothing to time");
}
