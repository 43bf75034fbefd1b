//! Between Burn's tensors and CubeCL's, and tensors to be written.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::std::tensor::copy_into;

use super::{recording, vector_size};

/// The CubeCL tensor behind `x`.
pub(crate) fn inner<R, B, const D: usize>(x: Tensor<B, D>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    x.into_primitive().tensor()
}

/// The tensor over `x`.
pub(crate) fn tensor<R, B, const D: usize>(x: CubeTensor<R>) -> Tensor<B, D>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// A tensor to be written, in rows without padding, on the device of `like`.
pub(crate) fn empty<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    let bytes = shape.iter().product::<usize>() * dtype.size();
    let shape = Shape::from(shape);
    match recording::output(bytes, || client.empty(bytes)) {
        Some(handle) => CubeTensor::new_contiguous(client, device, shape, handle, dtype),
        None => empty_device_contiguous_dtype(client, device, shape, dtype),
    }
}

/// `x` if nothing else holds it and it has no gaps, or a copy.
pub(crate) fn own<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    if x.can_mut() && x.is_contiguous() {
        return x;
    }
    recording::copies();
    let shape = x.meta.shape().clone();
    let copy = CubeTensor::new_contiguous(
        x.client.clone(),
        x.device.clone(),
        shape.clone(),
        x.client.empty(shape.num_elements() * x.dtype.size()),
        x.dtype,
    );
    let (client, dtype) = (x.client.clone(), x.dtype);
    copy_into(&client, x.binding(), copy.clone().binding(), dtype.into());
    copy
}

/// `x` of a 16-bit dtype, whose rows are then read 16 bytes at a time; without a copy if they can be already.
pub(crate) fn in_vectors<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    if vector_size(&[&x]) < 8 {
        into_contiguous(x)
    } else {
        x
    }
}
