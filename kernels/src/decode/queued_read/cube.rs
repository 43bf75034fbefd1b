//! Reads on CubeCL's backends. Their servers queue a copy at the call, and return a future that waits for it.

use burn::tensor::backend::{DeviceOps, ExecutionError};
use burn::tensor::{Int, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{ComputeServer, CopyDescriptor};
use cubecl::stream_id::StreamId;

use super::{QueueRead, QueuedRead};

impl<R, F, I, T> QueueRead for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn queue_read(ids: Tensor<Self, 1, Int>) -> QueuedRead {
        let ids = into_contiguous(ids.into_primitive());
        #[cfg(feature = "wgpu")]
        if !crate::cube::is_cuda::<R>()
            && let Some(queued) = super::wgpu::queue_read(&ids)
        {
            return queued;
        }
        let (shape, dtype) = (ids.meta.shape().clone(), ids.dtype);
        let strides = ids.meta.strides().clone();
        let binding = ids.handle.clone().binding();
        let ids_b = CopyDescriptor::new(binding, shape.clone(), strides, dtype.size());
        let handle = DeviceHandle::<R::Server>::new(ids.device.id());
        let queued =
            handle.submit_blocking(move |server| server.read(vec![ids_b], StreamId::current()));
        let failed = |reason| ExecutionError::WithContext { reason };
        QueuedRead::new(async move {
            let queued = queued.map_err(|error| failed(format!("{error:?}")))?;
            let read = queued.await.map_err(|error| failed(error.to_string()))?;
            let bytes = read.into_iter().next();
            let bytes = bytes.ok_or_else(|| failed("nothing was read".into()))?;
            Ok(TensorData::from_bytes(bytes, shape, dtype))
        })
    }
}
