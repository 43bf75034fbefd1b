//! As a CUDA graph.
//!
//! # How a step is recorded
//!
//! 1. The rehearsal: the step is computed, on a copy of the ids, and its outputs are noted
//!    ([`recording`](crate::cube::recording)). Its stream must have been given as many commands as there are launches
//!    and outputs: anything else, such as an op of Burn's, might reserve memory, which must not happen in a capture.
//! 2. The stream behind this thread begins to capture: it notes what it is given, and computes none of it.
//! 3. The step is taken again with the same outputs.
//! 4. The capture ends. If it has as many kernels as launches were made, and nothing else, it becomes a graph.
//!
//! For arrays and numbers, CubeCL passes all arguments with the launch and copies nothing to the device. For a kernel
//! over tensors it copies their shapes; such a copy is another kind of node in the graph, and the recording is refused.
//!
//! # Why a replay is safe
//!
//! The recording holds bindings of all memory that the launches touch, so that this memory stays reserved at its
//! address. A binding does not count as a holder of a tensor, so a step that is computed normally can still write the
//! same tensors in place. The graph runs on the stream of the thread that recorded it, in order with all other work of
//! that thread. The logits of each replay overwrite the previous logits, so there is no replay while something holds
//! these.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{Int, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl::stream_id::StreamId;
use cudarc::driver::sys as cuda;

use super::{Recording, Repeat, Step, Taken};
use crate::cube::cuda_stream::{self, Server};
use crate::cube::recording::{Take, capture, rehearse};
use crate::cube::{inner, step_counter, tensor};

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
    let [b]: [usize; 1] = given.meta.shape().dims();
    let bytes = b * given.dtype.size();
    let handle = DeviceHandle::<Server>::new(device);
    let is_known = handle.submit_blocking(|server| cuda_stream::current(server).is_some());
    if !matches!(is_known, Ok(true)) || !given.is_contiguous() {
        return (step(Tensor::from_primitive(given)), None);
    }
    let own = CubeTensor::new_contiguous(
        given.client.clone(),
        given.device.clone(),
        Shape::from([b]),
        given.client.empty(bytes),
        given.dtype,
    );
    let counter = step_counter::new(&given);
    let (from, to) = (given.handle.clone().binding(), own.handle.clone().binding());
    let before = handle.submit_blocking(move |server| {
        copy(server, from, to, bytes);
        cuda_stream::commands(server)
    });
    let (logits, rehearsal) = rehearse(counter.handle.clone(), || {
        step(Tensor::from_primitive(own.clone()))
    });
    let after = handle.submit_blocking(|server| cuda_stream::commands(server));
    let logits = inner::<R, _, 2>(logits);
    let known = rehearsal.launches + rehearsal.outputs.len();
    let recorded = match (before, after) {
        (Ok(Some(before)), Ok(Some(after))) if after - before == known as u64 => {
            graph(device, &logits.handle, rehearsal, || {
                drop(step(Tensor::from_primitive(own.clone())));
            })
        }
        other => Err(format!(
            "{other:?} commands, of which {known} are launches and outputs"
        )),
    };
    let recording = match recorded {
        Ok((graph, result, touched)) => Some(Recording(Box::new(Recorded {
            graph,
            ids: own,
            counter: counter.handle,
            result: CubeTensor {
                handle: result,
                ..logits.clone()
            },
            stream: StreamId::current(),
            _touched: touched,
        }) as Box<dyn Repeat<_>>)),
        Err(reason) => {
            log::debug!("a step of decoding is not recorded: {reason}");
            None
        }
    };
    (tensor(logits), recording)
}

/// The graph of a step that was rehearsed, the memory of its result, `logits`, and all that it touches.
///
/// # Errors
/// The reason why the step cannot be recorded. In this case it was not computed a second time.
///
/// # Panics
/// If `step` behaves differently than in the rehearsal, so that its state is lost.
fn graph(
    device: DeviceId,
    logits: &Handle,
    rehearsal: Take,
    step: impl FnOnce(),
) -> Result<(Graph, Handle, Vec<Binding>), String> {
    if let Some(obstacle) = rehearsal.obstacle {
        return Err(obstacle.into());
    }
    // Held by the caller too.
    let is_held = |(_, output): &&(usize, Handle)| !output.can_mut();
    if rehearsal.outputs.iter().filter(is_held).count() != 1 {
        return Err("its result is not its only output that is held".into());
    }
    let launches = rehearsal.launches;
    let anchor = logits.clone().binding();
    let handle = DeviceHandle::<Server>::new(device);
    let begun = handle.submit_blocking(move |server| begin(server, anchor));
    begun.map_err(|error| format!("{error:?}"))??;
    let taken = catch_unwind(AssertUnwindSafe(|| capture(rehearsal, step)));
    // Even if the step has panicked, or the stream would compute nothing any more.
    let ended = handle.submit_blocking(move |server| end(server, device, launches));
    let ((), taken) = taken.unwrap_or_else(|panic| resume_unwind(panic));
    // The copy would be used from now on, but was never made.
    let obstacle = taken.obstacle;
    assert!(
        obstacle.is_none(),
        "a step that did not copy its state now does: {obstacle:?}"
    );
    let graph = ended.map_err(|error| format!("{error:?}"))??;
    if taken.launches != launches {
        return Err("its launches differ from one time to the next".into());
    }
    let (_, result) = taken
        .outputs
        .iter()
        .find(is_held)
        .ok_or("its result is no output of it")?;
    let result = result.clone();
    let mut touched = taken.touched;
    touched.extend(
        taken
            .outputs
            .into_iter()
            .map(|(_, output)| output.binding()),
    );
    Ok((graph, result, touched))
}

/// A recorded step.
struct Recorded<R: CubeRuntime> {
    graph: Graph,
    /// What the step reads.
    ids: CubeTensor<R>,
    /// Where it reads how many steps were taken since the one that was recorded.
    counter: Handle,
    /// What it gives.
    result: CubeTensor<R>,
    /// The thread that has recorded it.
    stream: StreamId,
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
            ids.meta.shape().dims::<1>(),
            self.ids.meta.shape().dims::<1>(),
            "a recorded step reads as many ids as were recorded"
        );
        let alike = ids.is_contiguous() && ids.dtype == self.ids.dtype;
        if !alike || StreamId::current() != self.stream || !self.result.handle.can_mut() {
            return None;
        }
        let bytes = ids.meta.num_elements() * ids.dtype.size();
        let (from, to) = (ids.handle.binding(), self.ids.handle.clone().binding());
        let (graph, counter) = (self.graph.pointer, self.counter.clone().binding());
        let device = DeviceHandle::<Server>::new(self.graph.device);
        device.submit(move |server| {
            copy(server, from, to, bytes);
            set(server, counter, since);
            graph.launch(server);
        });
        device.flush_queue();
        Some(tensor(self.result.clone()))
    }
}

/// A graph that can be launched.
struct Graph {
    pointer: GraphPointer,
    device: DeviceId,
}

/// Of a graph, on its way to the device's thread.
#[derive(Clone, Copy)]
struct GraphPointer(cuda::CUgraphExec);

// SAFETY: the driver's functions take it from any thread; here it is the device's alone.
unsafe impl Send for GraphPointer {}
// SAFETY: as above.
unsafe impl Sync for GraphPointer {}

impl GraphPointer {
    /// Gives the graph to the stream of this task. A failure is a panic on the device's thread, which is where
    /// launches fail.
    fn launch(self, server: &Server) {
        let stream = cuda_stream::current(server).expect("the stream that `record` has found");
        // SAFETY: the graph is destroyed by a later task, and the stream is CubeCL's.
        let launched = unsafe { cuda::cuGraphLaunch(self.0, stream) };
        launched.result().expect("cuGraphLaunch");
    }

    /// # Safety
    /// It is not used again.
    unsafe fn destroy(self) {
        // SAFETY: the caller's. A failure changes no result, so it is ignored.
        let _ = unsafe { cuda::cuGraphExecDestroy(self.0) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let pointer = self.pointer;
        // After the launches that are queued.
        // SAFETY: there is no launch of it after this.
        DeviceHandle::<Server>::new(self.device).submit(move |_| unsafe { pointer.destroy() });
    }
}

/// Copies bytes from one buffer to another on the stream of this task.
fn copy(server: &mut Server, from: Binding, to: Binding, bytes: usize) {
    let stream = StreamId::current();
    let mut address = |binding| {
        let resource = server.get_resource(binding, stream);
        resource.expect("a buffer that is bound").resource().ptr
    };
    let (from, to) = (address(from), address(to));
    let stream = cuda_stream::current(server).expect("the stream that `record` has found");
    // SAFETY: both buffers have as many bytes, and lie on the device whose context is current since `get_resource`;
    // the stream is CubeCL's.
    let copied = unsafe { cuda::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
    copied.result().expect("cuMemcpyDtoDAsync");
}

/// Sets the number in a buffer on the stream of this task.
fn set(server: &mut Server, number: Binding, value: u32) {
    let resource = server.get_resource(number, StreamId::current());
    let address = resource.expect("a buffer that is bound").resource().ptr;
    let stream = cuda_stream::current(server).expect("the stream that `record` has found");
    // SAFETY: the buffer has a number of 32 bits, and lies on the device whose context is current since `get_resource`; the
    // stream is CubeCL's.
    let set = unsafe { cuda::cuMemsetD32Async(address, value, 1, stream) };
    set.result().expect("cuMemsetD32Async");
}

/// Lets the stream of this task capture what it is given.
fn begin(server: &mut Server, anchor: Binding) -> Result<(), String> {
    let id = StreamId::current();
    // What waits to be freed is freed now, and the device's context is current.
    server.flush(id).map_err(|error| format!("{error:?}"))?;
    let anchored = server.get_resource(anchor, id);
    anchored.map_err(|error| format!("{error:?}"))?;
    let stream = cuda_stream::current(server).ok_or("the stream of this thread is not known")?;
    let mode = cuda::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is CubeCL's, and is not capturing: captures end in the task after the step's.
    let begun = unsafe { cuda::cuStreamBeginCapture_v2(stream, mode) };
    begun
        .result()
        .map_err(|error| format!("cuStreamBeginCapture: {error}"))
}

/// Ends the capture of the stream of this task, and makes a graph of it.
fn end(server: &mut Server, device: DeviceId, launches: usize) -> Result<Graph, String> {
    let stream = cuda_stream::current(server).ok_or("the stream of this thread is not known")?;
    let mut captured = ptr::null_mut();
    // SAFETY: the stream is CubeCL's, and captures since `begin`.
    let ended = unsafe { cuda::cuStreamEndCapture(stream, &mut captured) };
    ended
        .result()
        .map_err(|error| format!("cuStreamEndCapture: {error}"))?;
    // SAFETY: `captured` is a graph since the capture ended well, and is destroyed once.
    unsafe {
        let checked = check(captured, launches);
        let mut graph = ptr::null_mut();
        let made = checked.and_then(|()| {
            let made = cuda::cuGraphInstantiateWithFlags(&mut graph, captured, 0);
            made.result()
                .map_err(|error| format!("cuGraphInstantiate: {error}"))
        });
        let _ = cuda::cuGraphDestroy(captured);
        made.map(|()| Graph {
            pointer: GraphPointer(graph),
            device,
        })
    }
}

/// Checks that a graph has this many kernels and nothing else.
///
/// # Safety
/// `graph` is one.
unsafe fn check(graph: cuda::CUgraph, launches: usize) -> Result<(), String> {
    let failed = |error| format!("the nodes of a graph: {error}");
    let mut n = 0;
    // SAFETY: the caller's; without room for nodes the driver writes their number.
    let counted = unsafe { cuda::cuGraphGetNodes(graph, ptr::null_mut(), &mut n) };
    counted.result().map_err(failed)?;
    let mut nodes = vec![ptr::null_mut(); n];
    // SAFETY: there is room for as many.
    let read = unsafe { cuda::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut n) };
    read.result().map_err(failed)?;
    let mut kernels = 0;
    let mut others = BTreeSet::new();
    for node in nodes {
        let mut kind = cuda::CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: it is a node of the graph.
        let read = unsafe { cuda::cuGraphNodeGetType(node, &mut kind) };
        read.result().map_err(failed)?;
        if kind == cuda::CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_KERNEL {
            kernels += 1;
        } else {
            others.insert(format!("{kind:?}"));
        }
    }
    if kernels != launches || !others.is_empty() {
        return Err(format!(
            "{launches} launches were {kernels} kernels and these: {others:?}"
        ));
    }
    Ok(())
}
