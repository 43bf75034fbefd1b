//! What a launch needs to know about its tensors: dtypes, widths of vectors and of indices.

#[cfg(feature = "cuda")]
use std::any::TypeId;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::AddressType;
use cubecl::tensor_vector_size_parallel;

/// Whether kernels support `dtype`: they read and write it, and compute in f32. All other dtypes are computed by the
/// reference; f64, for example, would lose precision in f32.
pub(crate) fn computes_in_f32(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether the runtime is CUDA.
#[allow(clippy::extra_unused_type_parameters)]
pub(crate) fn is_cuda<R: CubeRuntime>() -> bool {
    #[cfg(feature = "cuda")]
    let is_cuda = TypeId::of::<R>() == TypeId::of::<cubecl::cuda::CudaRuntime>();
    #[cfg(not(feature = "cuda"))]
    let is_cuda = false;
    is_cuda
}

/// How many neighbours along the last axis can be read and written together in all of `tensors`.
pub(crate) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    let sizes = tensors.iter().map(|x| {
        let sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        tensor_vector_size_parallel(sizes, shape, strides, x.meta.num_dims() - 1)
    });
    sizes.min().unwrap_or(1)
}

/// The width of an index into the largest of `tensors`.
pub(crate) fn address_type<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    let widths = tensors.iter().map(|x| x.required_address_type());
    widths.max().unwrap_or_default()
}

/// How many neighbours can be read and written together in all of `tensors`, which have no gaps and equally
/// many elements.
pub(crate) fn flat_vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    let sizes = tensors.iter().map(|x| {
        let elements = x.meta.num_elements();
        let mut sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        sizes.find(|size| elements % size == 0).unwrap_or(1)
    });
    sizes.min().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_is_not_computed_in_f32() {
        assert!(!computes_in_f32(DType::F64));
        assert!(
            [DType::F32, DType::F16, DType::BF16]
                .into_iter()
                .all(computes_in_f32)
        );
    }
}
