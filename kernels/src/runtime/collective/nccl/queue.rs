//! NCCL's operations, in order with what CubeCL has queued.
//!
//! An operation is a task on the device's thread, as for fenced products by cuBLASLt
//! (`dense/linear/cublaslt/queue.rs`): `cuCtxRecordEvent` marks all work that was issued to the context before, and a
//! stream of this module waits for this work and then runs the operation, or several as one. A second task,
//! [`Begun::finish`], makes all later work of the context wait for the operation by `cuCtxWaitEvent`. Kernels that CubeCL
//! issues between the two tasks run at the same time as the operation. (A fenced product between them waits, since its
//! mark of the context includes this module's stream.) No thread of the host waits.
//!
//! # The memory of an operation
//!
//! CubeCL's pool gives memory away as soon as no tensor and no queued task holds it; the device's thread decides this
//! when it reserves memory for a later tensor, and it can be far behind the thread that queues. So buffers that were
//! dropped after the second task was *queued* could be given away before that task *ran*, while NCCL still used them: an
//! earlier version did this, and each run gave other numbers (two GPUs, 20 steps of each stage with the bundled teacher: a
//! perplexity of 98 to 100 instead of 89.8). Therefore:
//!
//! - From the first task until [`Begun::finish`], handles are held of all buffers that are read or written. Handles also
//!   prevent that another tensor of the same memory is changed in place.
//! - From then on the second task holds bindings of them until it has run. What gets their memory after that is issued
//!   later, and so it waits for the operation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::DeviceId;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer, Handle};
use cudarc::driver::{result as driver, sys as cuda};

use super::super::{CollectiveError, JobId, Place};
use super::library::{Comm, Nccl};

type Server = <CudaRuntime as Runtime>::Server;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce,
    ReduceScatter,
    AllGather,
    /// All-gather within one buffer, in which each rank has its part.
    GatherParts,
    Broadcast,
}

impl Kind {
    /// Whether the buffer that is read is the one that is written.
    pub(super) fn is_in_place(self) -> bool {
        matches!(self, Self::AllReduce | Self::GatherParts)
    }

    /// What NCCL takes as the count of an operation that reads a tensor of so many `elements`: those of a rank's part, where
    /// there are parts.
    ///
    /// # Panics
    /// If `world` does not divide what it should.
    pub(super) fn count(self, elements: usize, world: usize) -> usize {
        match self {
            Self::AllReduce | Self::AllGather | Self::Broadcast => elements,
            Self::ReduceScatter | Self::GatherParts => {
                let divides = elements.is_multiple_of(world);
                assert!(divides, "the number of ranks divides what they share");
                elements / world
            }
        }
    }
}

/// One of the operations that are queued together.
pub(super) struct Operation {
    /// See [`Kind::count`].
    pub(super) count: usize,
    /// What is read, and what is written.
    pub(super) buffers: [Handle; 2],
}

/// NCCL's communicator, which any thread may ask whether it has failed.
pub(super) struct Communicator {
    library: &'static Nccl,
    /// `None` once it is aborted.
    comm: Mutex<Option<Pointer>>,
}

#[derive(Clone, Copy)]
struct Pointer(Comm);

// SAFETY: NCCL's functions may be called from any thread, as long as no two use a communicator at once, but for the
// question for errors and the abort, which may come at any time.
unsafe impl Send for Pointer {}

impl Communicator {
    fn lock(&self) -> MutexGuard<'_, Option<Pointer>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Collective::failure`](super::super::Collective::failure).
    pub(super) fn failure(&self) -> Option<String> {
        // A thread that queues an operation has the lock for that moment.
        let comm = self.comm.try_lock().ok()?;
        // SAFETY: it is not aborted as long as it is there.
        (*comm).and_then(|comm| unsafe { self.library.failure(comm.0) })
    }

    /// See [`Collective::abort`](super::super::Collective::abort).
    pub(super) fn abort(&self) {
        if let Some(comm) = self.lock().take() {
            // SAFETY: it was there, and nobody has it from now on.
            unsafe { self.library.abort(comm.0) };
        }
    }
}

/// Of one device, on that device's thread.
struct Streams {
    context: cuda::CUcontext,
    stream: cuda::CUstream,
    /// All that came before an operation is done.
    before: cuda::CUevent,
    /// Operations that nothing waits for yet: the event that an operation is done, by its number.
    begun: HashMap<u64, cuda::CUevent>,
    /// Events that no operation has.
    unused: Vec<cuda::CUevent>,
}

thread_local! {
    static STREAMS: RefCell<Option<Streams>> = const { RefCell::new(None) };
}

/// A communicator of the device's primary context, in which CubeCL computes. Waits for all ranks.
pub(super) fn join(
    library: &'static Nccl,
    device: DeviceId,
    place: Place,
    id: JobId,
) -> Result<Communicator, CollectiveError> {
    let joined = DeviceHandle::<Server>::new(device).submit_blocking(move |_| {
        let streams = Streams::open(device).map_err(CollectiveError)?;
        let comm = library.init(place.world, id, place.rank)?;
        STREAMS.with(|cell| *cell.borrow_mut() = Some(streams));
        Ok(Communicator {
            library,
            comm: Mutex::new(Some(Pointer(comm))),
        })
    });
    joined.unwrap_or_else(|error| {
        Err(CollectiveError(format!(
            "the device's thread has failed while ranks joined: {error:?}"
        )))
    })
}

/// Operations that were queued, and that no later work waits for yet.
pub(super) struct Begun {
    device: DeviceId,
    number: u64,
    /// All that is read or written.
    buffers: Vec<Handle>,
}

/// Queues operations of one kind as the rank of this number, after all that this thread has queued on the device.
pub(super) fn begin(
    device: DeviceId,
    communicator: &Arc<Communicator>,
    (kind, rank): (Kind, usize),
    operations: Vec<Operation>,
) -> Begun {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let buffers = operations.iter();
    let buffers = buffers.flat_map(|operation| operation.buffers.clone());
    let buffers = buffers.collect();
    let operations = operations.into_iter();
    let operations =
        operations.map(|operation| (operation.count, operation.buffers.map(Handle::binding)));
    let operations: Vec<_> = operations.collect();
    let communicator = communicator.clone();
    on_streams(device, move |streams, server| {
        streams.begin(server, &communicator, (kind, rank), operations, number)
    });
    Begun {
        device,
        number,
        buffers,
    }
}

impl Begun {
    /// Makes all that is queued on the device from now on wait for the operations.
    pub(super) fn finish(self) {
        let number = self.number;
        // Bindings keep memory and do not count as its holders.
        let buffers = self.buffers.into_iter().map(Handle::binding);
        let buffers: Vec<Binding> = buffers.collect();
        on_streams(self.device, move |streams, _| {
            let finished = streams.finish(number);
            drop(buffers);
            finished
        });
    }
}

/// Queues `act` as a task of the device's thread.
fn on_streams(
    device: DeviceId,
    act: impl FnOnce(&mut Streams, &mut Server) -> Result<(), String> + Send + 'static,
) {
    DeviceHandle::<Server>::new(device).submit(move |server| {
        let done = STREAMS.with(|cell| match &mut *cell.borrow_mut() {
            Some(streams) => act(streams, server),
            None => Err("no rank has joined on this device".into()),
        });
        if let Err(reason) = done {
            panic!("a sum or a copy over the ranks failed: {reason}");
        }
    });
}

impl Streams {
    /// Makes the device's primary context current.
    fn open(device: DeviceId) -> Result<Self, String> {
        let ordinal = driver::device::get(device.index_id.into());
        let ordinal = ordinal.map_err(|error| failed("cuDeviceGet", error))?;
        // SAFETY: the primary context, which CubeCL computes in, is kept from now on; stream and event belong to it, as
        // it is current.
        unsafe {
            let context = driver::primary_ctx::retain(ordinal)
                .map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
            driver::ctx::set_current(context).map_err(|error| failed("cuCtxSetCurrent", error))?;
            Ok(Self {
                context,
                stream: stream()?,
                before: event()?,
                begun: HashMap::new(),
                unused: vec![],
            })
        }
    }

    fn begin(
        &mut self,
        server: &mut Server,
        communicator: &Communicator,
        (kind, rank): (Kind, usize),
        operations: Vec<(usize, [Binding; 2])>,
        number: u64,
    ) -> Result<(), String> {
        let mut address = |binding: Binding| {
            let stream = binding.stream;
            let resource = server.get_resource(binding, stream);
            let resource = resource.map_err(|error| failed("a buffer", format!("{error:?}")))?;
            Ok::<_, String>(resource.resource().ptr)
        };
        let mut ready = Vec::with_capacity(operations.len());
        for (count, [from, to]) in operations {
            let (mut from, to) = (address(from)?, address(to)?);
            if kind == Kind::GatherParts {
                from += (rank * count * size_of::<f32>()) as u64;
            }
            ready.push((count, [from, to]));
        }
        let comm = communicator.lock();
        let comm_pointer = comm.ok_or("it was given up before")?.0;
        let library = communicator.library;
        // SAFETY: context, stream and events are those of `open`, or events of this context. The buffers have as many
        // elements as the caller's tensors, and their memory is not given away before `finish`.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            let after = match self.unused.pop() {
                Some(unused) => unused,
                None => event()?,
            };
            cuda::cuCtxRecordEvent(self.context, self.before)
                .result()
                .map_err(|error| failed("cuCtxRecordEvent", error))?;
            cuda::cuStreamWaitEvent(self.stream, self.before, 0)
                .result()
                .map_err(|error| failed("cuStreamWaitEvent", error))?;
            let stream = self.stream;
            let queued = library.together(|| {
                ready
                    .into_iter()
                    .try_for_each(|(count, pointers)| match kind {
                        Kind::AllReduce => {
                            library.all_reduce(pointers, count, comm_pointer, stream)
                        }
                        Kind::ReduceScatter => {
                            library.reduce_scatter(pointers, count, comm_pointer, stream)
                        }
                        Kind::AllGather | Kind::GatherParts => {
                            library.all_gather(pointers, count, comm_pointer, stream)
                        }
                        Kind::Broadcast => library.broadcast(pointers, count, comm_pointer, stream),
                    })
            });
            queued.map_err(|error| error.to_string())?;
            cuda::cuEventRecord(after, self.stream)
                .result()
                .map_err(|error| failed("cuEventRecord", error))?;
            self.begun.insert(number, after);
        }
        Ok(())
    }

    fn finish(&mut self, number: u64) -> Result<(), String> {
        let Some(after) = self.begun.remove(&number) else {
            // `begin` has failed, and its task has reported why.
            return Ok(());
        };
        // SAFETY: as in `begin`.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            cuda::cuCtxWaitEvent(self.context, after)
                .result()
                .map_err(|error| failed("cuCtxWaitEvent", error))?;
        }
        // The wait is for what was recorded before it, so the event may be recorded again.
        self.unused.push(after);
        Ok(())
    }
}

/// A new stream of the current context. Its kernels go before those of others where both wait for a part of the device to
/// be free: an operation that begins late is late on all ranks, and takes few of the device's parts.
///
/// # Safety
/// A context is current.
unsafe fn stream() -> Result<cuda::CUstream, String> {
    let (mut least, mut greatest) = (0, 0);
    let mut stream = std::ptr::null_mut();
    let flags = cuda::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: by the caller; the driver writes the three.
    unsafe {
        cuda::cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
            .result()
            .map_err(|error| failed("cuCtxGetStreamPriorityRange", error))?;
        cuda::cuStreamCreateWithPriority(&mut stream, flags, greatest)
            .result()
            .map_err(|error| failed("cuStreamCreateWithPriority", error))?;
    }
    Ok(stream)
}

/// A new event of the current context.
///
/// # Safety
/// A context is current.
unsafe fn event() -> Result<cuda::CUevent, String> {
    driver::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING)
        .map_err(|error| failed("cuEventCreate", error))
}

fn failed(what: &str, error: impl Display) -> String {
    format!("{what}: {error}")
}
