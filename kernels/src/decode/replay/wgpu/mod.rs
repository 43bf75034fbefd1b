//! As a list of dispatches.
//!
//! For each launch, CubeCL 0.10 looks up the kernel, makes a buffer for its scalar arguments and a bind group, and
//! submits 32 launches at a time to the GPU. In a repeated step all of these are the same each time. So they are made
//! once, and a replay passes them to wgpu unchanged.
//!
//! # How a step is recorded
//!
//! The step is computed, its outputs are noted ([`recording`](crate::cube::recording)), and so are its launches
//! ([`noted_launches`](crate::cube::noted_launches)). If the device was given nothing else, each launch becomes a pipeline and a
//! group of bindings. The ids have a buffer of their own, which stands for theirs.
//!
//! # Why a replay is safe
//!
//! The recording holds bindings of all memory that the launches touch, so that it stays reserved. The dispatches go to
//! the device's queue after all work that the thread has queued before. The logits of each replay overwrite the
//! previous logits, so there is no replay while something holds these.

mod tasks;

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::Compiler;
use cubecl::device_handle::DeviceHandle;
use cubecl::prelude::*;
use cubecl::server::{Binding, ComputeServer, Handle, KernelArguments, MetadataBindingInfo};
use cubecl::stream_id::StreamId;
use cubecl::wgpu::{AutoCompiler, WgpuDevice, WgpuResource, WgpuServer, WgpuSetup};
use wgpu::util::DeviceExt;

use self::tasks::Tasks;
use super::{Recording, Repeat, Step, Taken};
use crate::cube::noted_launches::{Launched, Settled, noted};
use crate::cube::recording::rehearse;
use crate::cube::{inner, step_counter, tensor};
use crate::runtime::wgpu_setup::setup;

/// Dispatches that the GPU is given first, so that it computes while the others are put together.
const FIRST: usize = 16;

/// See [`record`](super::record).
pub(super) fn record<R, F, I, T>(
    ids: Tensor<CubeBackend<R, F, I, T>, 1, Int>,
    step: &mut Step<'_, CubeBackend<R, F, I, T>>,
) -> Taken<CubeBackend<R, F, I, T>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let given = ids.into_primitive();
    let device = given.device.id();
    // What was opened is the default device.
    let can_record = given.is_contiguous() && device == WgpuDevice::default().id();
    let Some(setup) = setup().filter(|_| can_record) else {
        return (step(Tensor::from_primitive(given)), None);
    };
    let counter = step_counter::new(&given).handle;
    let ((logits, rehearsal), launches) = noted(device, settle, || {
        rehearse(counter.clone(), || {
            step(Tensor::from_primitive(given.clone()))
        })
    });
    let logits = inner::<R, _, 2>(logits);
    let recorded = || -> Result<_, String> {
        if let Some(obstacle) = rehearsal.obstacle {
            return Err(obstacle.into());
        }
        let launches = launches.ok_or("it gives the device more than its launches")?;
        if launches.len() != rehearsal.launches {
            return Err("not all of its launches are noted".into());
        }
        // Held by the caller too.
        let is_held = |(_, output): &&(usize, Handle)| !output.can_mut();
        let mut held = rehearsal.outputs.iter().filter(is_held);
        let (Some((_, result)), None) = (held.next(), held.next()) else {
            return Err("its result is not its only output that is held".into());
        };
        let result = result.clone();
        let stream = StreamId::current();
        let ids = given.handle.clone().binding();
        let counter = counter.clone().binding();
        let dispatches = DeviceHandle::<WgpuServer>::new(device)
            .submit_blocking(move |server| {
                let counter = resource(server, counter, stream)?;
                dispatches(server, setup, launches, ids, counter, stream)
            })
            .map_err(|error| format!("{error:?}"))??;
        let outputs = rehearsal.outputs.into_iter();
        let mut touched = rehearsal.touched;
        touched.extend(outputs.map(|(_, output)| output.binding()));
        Ok((dispatches, result, touched, stream))
    };
    let recording = match recorded() {
        Ok((dispatches, result, touched, stream)) => Some(Recording(Box::new(Recorded {
            dispatches: Arc::new(dispatches),
            setup,
            device,
            ids: given.meta.num_elements(),
            dtype: given.dtype,
            result: CubeTensor {
                handle: result,
                ..logits.clone()
            },
            stream,
            _counter: counter,
            _touched: touched,
        })
            as Box<dyn Repeat<_>>)),
        Err(reason) => {
            log::debug!("a step of decoding is not recorded: {reason}");
            None
        }
    };
    (tensor(logits), recording)
}

/// Counts what the server keeps back of this thread, and gives it to the GPU.
fn settle(device: DeviceId) -> Option<Settled> {
    let stream = StreamId::current();
    let settled = DeviceHandle::<WgpuServer>::new(device).submit_blocking(move |server| {
        let printed = |server: &WgpuServer| {
            let mut tasks = Tasks::default();
            // It fails where the streams end.
            let _ = write!(tasks, "{server:?}");
            tasks.of(stream.value)
        };
        let before = printed(server)?;
        server.flush(stream).ok()?;
        Some(Settled {
            kept: before.kept,
            before: before.given?,
            after: printed(server)?.given?,
        })
    });
    settled.ok().flatten()
}

/// A launch, as wgpu is given it.
struct Dispatch {
    pipeline: Arc<wgpu::ComputePipeline>,
    bindings: wgpu::BindGroup,
    count: [u32; 3],
}

/// A step.
struct Dispatches {
    /// What the step reads its ids from.
    ids: wgpu::Buffer,
    /// Where it reads how many steps were taken since the one that was recorded.
    counter: WgpuResource,
    all: Vec<Dispatch>,
}

/// The launches, of which those that read `ids` read a buffer of their own.
fn dispatches(
    server: &mut WgpuServer,
    setup: &WgpuSetup,
    launches: Vec<Launched>,
    ids: Binding,
    counter: WgpuResource,
    stream: StreamId,
) -> Result<Dispatches, String> {
    let given = resource(server, ids, stream)?;
    let own = setup.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("ids of a repeated step"),
        size: given.size.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut all = Vec::with_capacity(launches.len());
    for launch in launches {
        let pipeline = pipeline(server, &launch)?;
        let mut arrays = Vec::with_capacity(launch.arrays.len());
        for array in launch.arrays {
            let found = resource(server, array, stream)?;
            let overlaps = found.buffer == given.buffer
                && found.offset < given.offset + given.size
                && given.offset < found.offset + found.size;
            arrays.push(if !overlaps {
                found
            } else if (found.offset, found.size) == (given.offset, given.size) {
                WgpuResource::new(own.clone(), 0, given.size)
            } else {
                return Err("it reads a part of its ids".into());
            });
        }
        if !launch.info.is_empty() {
            let bytes: Vec<u8> = launch
                .info
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            let buffer = setup
                .device
                .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                    label: Some("numbers of a repeated launch"),
                    contents: &bytes,
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE,
                });
            arrays.push(WgpuResource::new(buffer, 0, bytes.len() as u64));
        }
        let entries: Vec<_> = arrays
            .iter()
            .enumerate()
            .map(|(i, array)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: array.as_wgpu_bind_resource(),
            })
            .collect();
        let bindings = setup.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        all.push(Dispatch {
            pipeline,
            bindings,
            count: launch.count,
        });
    }
    Ok(Dispatches {
        ids: own,
        counter,
        all,
    })
}

/// Where an array is.
fn resource(
    server: &mut WgpuServer,
    array: Binding,
    stream: StreamId,
) -> Result<WgpuResource, String> {
    let found = server.get_resource(array, stream);
    let found = found.map_err(|error| format!("{error:?}"))?;
    let WgpuResource {
        buffer,
        offset,
        size,
    } = found.resource();
    Ok(WgpuResource::new(buffer.clone(), *offset, *size))
}

thread_local! {
    /// The device's thread compiles a kernel once, for all steps.
    static PIPELINES: RefCell<Vec<(KernelId, Arc<wgpu::ComputePipeline>)>> = RefCell::default();
}

/// The kernel of a launch, compiled.
fn pipeline(
    server: &mut WgpuServer,
    launch: &Launched,
) -> Result<Arc<wgpu::ComputePipeline>, String> {
    let id = launch.kernel.id();
    let known = PIPELINES.with_borrow(|known| {
        let known = known.iter().find(|(known, _)| *known == id);
        known.map(|(_, pipeline)| pipeline.clone())
    });
    if let Some(pipeline) = known {
        return Ok(pipeline);
    }
    let pipeline = compiled(server, launch)?;
    PIPELINES.with_borrow_mut(|known| known.push((id, pipeline.clone())));
    Ok(pipeline)
}

fn compiled(
    server: &mut WgpuServer,
    launch: &Launched,
) -> Result<Arc<wgpu::ComputePipeline>, String> {
    let options = &server.compilation_options;
    let mut compiler = if options.supports_vulkan {
        AutoCompiler::SpirV(Default::default())
    } else {
        AutoCompiler::Wgsl(Default::default())
    };
    let definition = launch.kernel.define();
    let name = definition.options.kernel_name.clone();
    let mode = ExecutionMode::Unchecked;
    let width = launch.kernel.address_type();
    let compiled = Compiler::compile(&mut compiler, definition, options, mode, width);
    let compiled = compiled.map_err(|error| format!("{error:?}"))?;
    let module = server.create_module(&name, Some(compiled.as_ref()), &compiled.to_string(), mode);
    let module = module.map_err(|error| format!("{error:?}"))?;
    let mut arguments = KernelArguments::new();
    arguments.buffers = launch.arrays.clone();
    arguments.info = MetadataBindingInfo::custom(launch.info.clone());
    Ok(server.create_pipeline(&name, Some(compiled.as_ref()), module, &arguments))
}

/// A recorded step.
struct Recorded<R: CubeRuntime> {
    dispatches: Arc<Dispatches>,
    setup: &'static WgpuSetup,
    device: DeviceId,
    /// How many ids the step reads.
    ids: usize,
    dtype: burn::tensor::DType,
    /// What it gives.
    result: CubeTensor<R>,
    /// The thread that has recorded it.
    stream: StreamId,
    _counter: Handle,
    _touched: Vec<Binding>,
}

impl<R, F, I, T> Repeat<CubeBackend<R, F, I, T>> for Recorded<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn replay(
        &self,
        ids: Tensor<CubeBackend<R, F, I, T>, 1, Int>,
        since: u32,
    ) -> Option<Tensor<CubeBackend<R, F, I, T>, 2>> {
        let ids = ids.into_primitive();
        assert_eq!(
            ids.meta.num_elements(),
            self.ids,
            "a recorded step reads as many ids as were recorded"
        );
        let alike = ids.is_contiguous() && ids.dtype == self.dtype;
        if !alike || StreamId::current() != self.stream || !self.result.handle.can_mut() {
            return None;
        }
        let (dispatches, setup, stream) = (self.dispatches.clone(), self.setup, self.stream);
        let ids = ids.handle.binding();
        let device = DeviceHandle::<WgpuServer>::new(self.device);
        device.submit(move |server| {
            // All that was queued before goes to the GPU with it.
            let ids = resource(server, ids, stream).expect("the ids of a step are in memory");
            repeat(setup, &dispatches, &ids, since);
        });
        device.flush_queue();
        Some(tensor(self.result.clone()))
    }
}

/// Gives the step to the GPU, the `since`th after the one that was recorded.
fn repeat(setup: &WgpuSetup, step: &Dispatches, ids: &WgpuResource, since: u32) {
    let counter = &step.counter;
    let bytes = since.to_ne_bytes();
    // What was given to the GPU before is not touched: it is written when the next dispatches begin.
    setup
        .queue
        .write_buffer(&counter.buffer, counter.offset, &bytes);
    let (first, rest) = step.all.split_at(FIRST.min(step.all.len()));
    for (i, part) in [first, rest].into_iter().enumerate() {
        let mut encoder = setup.device.create_command_encoder(&Default::default());
        if i == 0 {
            let bytes = ids.size.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
            encoder.copy_buffer_to_buffer(&ids.buffer, ids.offset, &step.ids, 0, bytes);
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for dispatch in part {
            let [x, y, z] = dispatch.count;
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
        drop(pass);
        setup.queue.submit([encoder.finish()]);
    }
}
