//! Times of the ops that have CubeCL kernels, on the CubeCL backend of this build (CUDA before wgpu):
//! `cargo bench -p kernels --features cuda --bench cube`.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod measure;

fn main() {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    measure::table();
}
