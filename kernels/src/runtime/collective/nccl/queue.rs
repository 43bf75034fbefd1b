//! NCCL's operations, in order with what CubeCL has queued.
//!
//! An operation is a task on the one thread of the device. An event marks what CubeCL's stream of the thread that queues it
//! ([`cuda_stream`]) has been given, and a stream of this module waits for that and gets the operation, or several as one.
//! Its result is waited for later, by a second task that has CubeCL's stream wait for it: kernels that CubeCL queues between
//! the two run beside the operation.
//!
//! Where a buffer was reserved by another thread, whose stream is another one, or the stream is not known, the whole
//! context is marked, and waits for the operation at once, as for fenced products by cuBLASLt
//! (`dense/linear/cublaslt/queue.rs`). Nothing may come between these two: with a wait of the context that was queued later,
//! ranks computed with parameters that had not all arrived.
//!
//! The caller keeps the tensors of an operation until its second task is queued, so that their memory is not given away
//! before.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::DeviceId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl::stream_id::StreamId;
use cudarc::driver::{result as driver, sys as cuda};

use super::super::{CollectiveError, JobId, Place};
use super::library::{Comm, Nccl};
use crate::cube::cuda_stream::{self, Server};

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
    /// Operations that nothing waits for yet, by their tickets.
    begun: HashMap<u64, Begun>,
    /// Events that no operation has.
    unused: Vec<cuda::CUevent>,
}

/// An operation that nothing waits for yet.
struct Begun {
    /// It is done.
    after: cuda::CUevent,
    /// Which of CubeCL's streams it goes beside, by CubeCL's number and as the driver knows it.
    beside: (StreamId, cuda::CUstream),
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

/// Queues operations of one kind as the rank of this number, after all that this thread has queued on the device.
/// [`finish`] takes what is returned.
pub(super) fn begin(
    device: DeviceId,
    communicator: &Arc<Communicator>,
    (kind, rank): (Kind, usize),
    operations: Vec<Operation>,
) -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(0);
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    // Bindings keep memory and do not count as its holders.
    let operations = operations.into_iter();
    let operations =
        operations.map(|operation| (operation.count, operation.buffers.map(Handle::binding)));
    let operations: Vec<_> = operations.collect();
    let communicator = communicator.clone();
    DeviceHandle::<Server>::new(device).submit(move |server| {
        let begun = with_streams(|streams| {
            streams.begin(server, &communicator, (kind, rank), operations, ticket)
        });
        if let Err(reason) = begun {
            panic!("a sum or a copy over the ranks failed: {reason}");
        }
    });
    ticket
}

/// Has all that the thread which has begun the operation of `ticket` queues from now on wait for it, and this thread too.
pub(super) fn finish(device: DeviceId, ticket: u64) {
    DeviceHandle::<Server>::new(device).submit(move |server| {
        if let Err(reason) = with_streams(|streams| streams.finish(server, ticket)) {
            panic!("a sum or a copy over the ranks failed: {reason}");
        }
    });
}

fn with_streams<T>(act: impl FnOnce(&mut Streams) -> Result<T, String>) -> Result<T, String> {
    STREAMS.with(|cell| match &mut *cell.borrow_mut() {
        Some(streams) => act(streams),
        None => Err("no rank has joined on this device".into()),
    })
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
        ticket: u64,
    ) -> Result<(), String> {
        let current = StreamId::current();
        let mut buffers = operations.iter().flat_map(|(_, buffers)| buffers);
        let are_own = buffers.all(|binding| binding.stream == current);
        let beside = cuda_stream::current(server).filter(|_| are_own);
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
        // SAFETY: context, stream and events are those of `open`. The buffers have as many elements as the caller's
        // tensors, which stay until the operations are finished.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            let after = match self.unused.pop() {
                Some(unused) => unused,
                None => event()?,
            };
            match beside {
                Some(own) => cuda::cuEventRecord(self.before, own),
                None => cuda::cuCtxRecordEvent(self.context, self.before),
            }
            .result()
            .map_err(|error| failed("a mark of what came before", error))?;
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
            if let Some(own) = beside {
                let beside = (current, own);
                self.begun.insert(ticket, Begun { after, beside });
            } else {
                self.context_waits(after)?;
            }
        }
        Ok(())
    }

    /// Has all that the context is given from now on wait for `after`, which then may be recorded anew.
    ///
    /// # Safety
    /// The context is current, and `after` is an event of it.
    unsafe fn context_waits(&mut self, after: cuda::CUevent) -> Result<(), String> {
        // SAFETY: by the caller.
        unsafe { cuda::cuCtxWaitEvent(self.context, after) }
            .result()
            .map_err(|error| failed("cuCtxWaitEvent", error))?;
        self.unused.push(after);
        Ok(())
    }

    fn finish(&mut self, server: &Server, ticket: u64) -> Result<(), String> {
        let Some(Begun { after, beside }) = self.begun.remove(&ticket) else {
            // All waits for it already.
            return Ok(());
        };
        let (begun_by, own) = beside;
        let other = (StreamId::current() != begun_by).then(|| cuda_stream::current(server));
        // SAFETY: as in `begin`; CubeCL keeps its streams.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            if other == Some(None) {
                return self.context_waits(after);
            }
            for stream in [Some(own), other.flatten()].into_iter().flatten() {
                cuda::cuStreamWaitEvent(stream, after, 0)
                    .result()
                    .map_err(|error| failed("cuStreamWaitEvent", error))?;
            }
        }
        // The waits are for what was recorded before them, so that the event may be recorded anew.
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
