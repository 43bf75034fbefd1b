//! NCCL's operations, in order with what CubeCL has queued.
//!
//! As for fenced products by cuBLASLt (`dense/linear/cublaslt/queue.rs`), an operation is a task on the one thread of the
//! device: `cuCtxRecordEvent` marks all that the context has been given, and a stream of this module waits for that and
//! gets the operation. Unlike a product, its result may be waited for later, by a second task that has all that the
//! context is given from then on wait for it: kernels that CubeCL queues between the two run beside the operation. (What
//! marks the whole context between them, as a fenced product does, waits, since its mark takes in this stream.)
//!
//! The caller keeps the tensors of an operation until its second task is queued, so that their memory is not given away
//! before.

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

/// What is done; `count` is in elements.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    AllReduce {
        count: usize,
    },
    /// Of each rank's part.
    ReduceScatter {
        count: usize,
    },
    /// Of what each rank gives.
    AllGather {
        count: usize,
    },
    Broadcast {
        count: usize,
    },
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
    /// Operations are done, by their tickets.
    after: HashMap<u64, cuda::CUevent>,
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

/// Queues an operation from the first buffer to the second, after all that this thread has queued on the device.
/// [`finish`] takes what is returned.
pub(super) fn begin(
    device: DeviceId,
    communicator: &Arc<Communicator>,
    kind: Kind,
    buffers: [Handle; 2],
) -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(0);
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    // Bindings keep memory and do not count as its holders.
    let buffers = buffers.map(Handle::binding);
    let communicator = communicator.clone();
    DeviceHandle::<Server>::new(device).submit(move |server| {
        let begun =
            with_streams(|streams| streams.begin(server, &communicator, kind, buffers, ticket));
        if let Err(reason) = begun {
            panic!("a sum or a copy over the ranks failed: {reason}");
        }
    });
    ticket
}

/// Has all that is queued on the device from now on wait for the operation of `ticket`.
pub(super) fn finish(device: DeviceId, ticket: u64) {
    DeviceHandle::<Server>::new(device).submit(move |_| {
        if let Err(reason) = with_streams(|streams| streams.finish(ticket)) {
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
                stream: driver::stream::create(driver::stream::StreamKind::NonBlocking)
                    .map_err(|error| failed("cuStreamCreate", error))?,
                before: event()?,
                after: HashMap::new(),
                unused: vec![],
            })
        }
    }

    fn begin(
        &mut self,
        server: &mut Server,
        communicator: &Communicator,
        kind: Kind,
        buffers: [Binding; 2],
        ticket: u64,
    ) -> Result<(), String> {
        let [from, to] = buffers.map(|binding| {
            let stream = binding.stream;
            let resource = server.get_resource(binding, stream);
            resource.map_err(|error| failed("a buffer", format!("{error:?}")))
        });
        let (from, to) = (from?, to?);
        let pointers = [from.resource().ptr, to.resource().ptr];
        let comm = communicator.lock();
        let comm_pointer = comm.ok_or("it was given up before")?.0;
        let library = communicator.library;
        // SAFETY: context, stream and events are those of `open`. The buffers have as many elements as the caller's
        // tensors, which stay until the operation is finished.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            let after = match self.unused.pop() {
                Some(unused) => unused,
                None => event()?,
            };
            self.after.insert(ticket, after);
            cuda::cuCtxRecordEvent(self.context, self.before)
                .result()
                .map_err(|error| failed("cuCtxRecordEvent", error))?;
            cuda::cuStreamWaitEvent(self.stream, self.before, 0)
                .result()
                .map_err(|error| failed("cuStreamWaitEvent", error))?;
            let queued = match kind {
                Kind::AllReduce { count } => {
                    library.all_reduce(pointers, count, comm_pointer, self.stream)
                }
                Kind::ReduceScatter { count } => {
                    library.reduce_scatter(pointers, count, comm_pointer, self.stream)
                }
                Kind::AllGather { count } => {
                    library.all_gather(pointers, count, comm_pointer, self.stream)
                }
                Kind::Broadcast { count } => {
                    library.broadcast(pointers, count, comm_pointer, self.stream)
                }
            };
            queued.map_err(|error| error.to_string())?;
            cuda::cuEventRecord(after, self.stream)
                .result()
                .map_err(|error| failed("cuEventRecord", error))
        }
    }

    fn finish(&mut self, ticket: u64) -> Result<(), String> {
        let Some(after) = self.after.remove(&ticket) else {
            return Err("it was not begun".into());
        };
        // SAFETY: as in `begin`.
        unsafe {
            driver::ctx::set_current(self.context)
                .map_err(|error| failed("cuCtxSetCurrent", error))?;
            cuda::cuCtxWaitEvent(self.context, after)
                .result()
                .map_err(|error| failed("cuCtxWaitEvent", error))?;
        }
        // The wait is for what was recorded before it, so that the event may be recorded anew.
        self.unused.push(after);
        Ok(())
    }
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
