//! Reads on wgpu. As soon as one of CubeCL's own reads is queued, a CubeCL thread waits for all submitted work, and
//! wgpu accepts no new work for the GPU during this wait. So here each read has its own buffer, and the host waits only
//! for the work that was queued before the read.

use std::sync::mpsc::channel;

use burn::tensor::TensorData;
use burn::tensor::backend::{DeviceOps, ExecutionError};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer};
use cubecl::stream_id::StreamId;
use cubecl::wgpu::{WgpuDevice, WgpuServer, WgpuSetup};

use super::QueuedRead;
use crate::runtime::wgpu_setup::setup;

/// A copy that the GPU was given.
struct Copied {
    to: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
}

/// See [`queue_read`](super::queue_read); `None` for a device that was not opened here.
pub(super) fn queue_read<R: CubeRuntime>(ids: &CubeTensor<R>) -> Option<QueuedRead> {
    let device = ids.device.id();
    let setup = setup().filter(|_| device == WgpuDevice::default().id())?;
    let (shape, dtype) = (ids.meta.shape().clone(), ids.dtype);
    let bytes = ids.meta.num_elements() * dtype.size();
    let binding = ids.handle.clone().binding();
    let handle = DeviceHandle::<WgpuServer>::new(device);
    let copied = handle.submit_blocking(move |server| copy(server, setup, binding, bytes));
    Some(QueuedRead::new(async move {
        let copied = copied.map_err(|error| format!("{error:?}"));
        let read = copied
            .flatten()
            .and_then(|copied| read(setup, copied, bytes));
        let read = read.map_err(|reason| ExecutionError::WithContext { reason })?;
        Ok(TensorData::from_bytes_vec(read, shape, dtype))
    }))
}

/// Copies bytes to a buffer that the host can read, behind all that the thread has queued.
fn copy(
    server: &mut WgpuServer,
    setup: &WgpuSetup,
    binding: Binding,
    bytes: usize,
) -> Result<Copied, String> {
    // What was queued before goes to the GPU with it.
    let found = server.get_resource(binding, StreamId::current());
    let found = found.map_err(|error| format!("{error:?}"))?;
    let from = found.resource();
    let size = (bytes as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
    let to = setup.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("what is read"),
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = setup.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to, 0, size);
    let submission = setup.queue.submit([encoder.finish()]);
    Ok(Copied { to, submission })
}

/// Waits for the copy.
fn read(setup: &WgpuSetup, copied: Copied, bytes: usize) -> Result<Vec<u8>, String> {
    let (done, mapped) = channel();
    let all = copied.to.slice(..);
    all.map_async(wgpu::MapMode::Read, move |result| {
        let _ = done.send(result);
    });
    let up_to_copy = wgpu::PollType::Wait {
        submission_index: Some(copied.submission),
        timeout: None,
    };
    let polled = setup.device.poll(up_to_copy);
    polled.map_err(|error| error.to_string())?;
    // Another thread may have found that the copy is done, and be on its way to say so.
    let mapped = mapped.recv().map_err(|error| error.to_string())?;
    mapped.map_err(|error| error.to_string())?;
    Ok(all.get_mapped_range()[..bytes].to_vec())
}
