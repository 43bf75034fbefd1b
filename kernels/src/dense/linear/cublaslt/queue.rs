//! Products by cuBLASLt, in order with what CubeCL has queued.
//!
//! # The way of a launch, and the product's
//!
//! A CubeCL client sends every launch, reservation and copy as a task to the device's thread. This thread runs the
//! tasks in the order of their arrival, and issues each to the driver, on the CUDA stream of the thread that queued it.
//! A product is another such task, and no thread waits for it. It uses the same stream ([`cuda_stream`]), so it is in
//! order with the work that the thread queues before and after it.
//!
//! If a buffer was reserved by another thread, which has another stream, or if the stream is not known, the product
//! runs on a stream of this module, with a fence before and after it:
//!
//! 1. `cuCtxRecordEvent` marks all work that was issued to the context before, on any stream;
//! 2. the module's stream waits for this work, and then runs the product;
//! 3. `cuCtxWaitEvent` makes all work that is issued to the context from now on, on any stream, wait for the product.
//!
//! No thread of the host waits. Products that are queued together share the two fences.
//!
//! # Why no buffer is lost or given away too early
//!
//! The task holds bindings of its buffers, as a launch does, so that their memory stays reserved until the task has
//! run. After that, the memory may be free although the product has perhaps not begun. But only a later task can get
//! this memory, and its launch, copy or release comes after the product: memory that was reserved by a stream is given
//! only to work on the same stream, which is in order, and after a fence the same is true for every stream. Bindings do
//! not count as holders, so an op that is queued later may write to the memory that the product reads; it is also in
//! order.
//!
//! # What is kept
//!
//! All objects are made on the device's thread and stay there: a handle, a stream, two events, a workspace for each
//! stream (the products of a stream use it one after the other), and a [`Plan`] for each [`Problem`]. Callers remember
//! which problems the library supports; for a new problem, they wait once for the device's thread. All objects live as
//! long as that thread, that is, as long as the process; only plans, which are cheap to make again, are dropped when
//! there are too many.
//!
//! # Precision and determinism
//!
//! Sums are in f32 whatever the dtype, and f32 is not rounded to TF32. The first algorithm of the heuristic
//! depends on the problem alone, and where it cuts the contracted axis in parts, only
//! `REDUCTION_SCHEME_COMPUTE_TYPE` is allowed: the parts lie in the workspace in f32 and are added up in one
//! order. So the same inputs give the same bits.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::backend::DeviceId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl::stream_id::StreamId;
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::{result as driver, sys as cuda};

use super::super::column_major::Problem;
use super::plan::Plan;
use crate::cube::cuda_stream::{self, Server};

/// Bytes for products that are cut along their contracted axis.
pub(super) const WORKSPACE: usize = 32 << 20;

/// Plans that are kept, at most: a server meets prompts of every length.
const PLANS: usize = 4096;

/// The driver's first version with events of a context.
const DRIVER: i32 = 12_050;

/// A product to be queued; its buffers are what its problem says they are.
pub(super) struct Product {
    pub problem: Problem,
    pub a: Handle,
    pub b: Handle,
    /// What is added, where the problem has it.
    pub c: Option<Handle>,
    pub d: Handle,
    /// What the epilogue reads or writes, where it has a vector.
    pub vector: Option<Handle>,
}

/// Whether the library is there and has an algorithm for this.
pub(super) fn takes(device: DeviceId, problem: &Problem) -> bool {
    static KNOWN: LazyLock<Mutex<HashMap<(DeviceId, Problem), bool>>> =
        LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (device, *problem);
    let found = known().get(&key).copied();
    found.unwrap_or_else(|| {
        let problem = *problem;
        let handle = DeviceHandle::<Server>::new(device);
        let taken =
            handle.submit_blocking(move |_| with_library(device, |library| library.plan(&problem)));
        let taken = match taken {
            Ok(Some(Ok(()))) => true,
            Ok(Some(Err(reason))) => {
                log::debug!("cuBLASLt does not take {problem:?}: {reason}");
                false
            }
            Ok(None) | Err(_) => false,
        };
        let mut known = known();
        if known.len() == PLANS {
            known.clear();
        }
        known.insert(key, taken);
        taken
    })
}

/// Queues products that the library [`takes`], after all that this thread has queued on the device and
/// before all that it will. A failure is a panic on the device's thread, which is where launches fail.
pub(super) fn queue(device: DeviceId, products: Vec<Product>) {
    let calls: Vec<Call> = products.into_iter().map(Call::new).collect();
    DeviceHandle::<Server>::new(device).submit(move |server| {
        let done = with_library(device, |library| library.multiply(server, calls));
        match done {
            Some(Ok(())) => (),
            Some(Err(reason)) => panic!("a matrix product failed: {reason}"),
            None => panic!("a matrix product was queued without the library"),
        }
    });
}

/// A [`Product`] on its way: with bindings, which keep memory but do not count as its holders.
struct Call {
    problem: Problem,
    a: Binding,
    b: Binding,
    c: Option<Binding>,
    d: Binding,
    vector: Option<Binding>,
}

impl Call {
    fn new(product: Product) -> Self {
        assert_eq!(product.problem.c.is_some(), product.c.is_some());
        let has_vector = product.problem.epilogue.has_vector();
        assert_eq!(has_vector, product.vector.is_some());
        Self {
            problem: product.problem,
            a: product.a.binding(),
            b: product.b.binding(),
            c: product.c.map(Handle::binding),
            d: product.d.binding(),
            vector: product.vector.map(Handle::binding),
        }
    }
}

/// A product and the addresses of its buffers, in the order of [`Problem::alignments`].
type Ready = (Problem, [Option<u64>; 5]);

/// The result of `act` on the library of the device whose thread this is; `None` if there is no library.
fn with_library<T>(device: DeviceId, act: impl FnOnce(&mut Library) -> T) -> Option<T> {
    thread_local! {
        static LIBRARY: OnceCell<Option<RefCell<Library>>> = const { OnceCell::new() };
    }
    LIBRARY.with(|cell| {
        let library = cell.get_or_init(|| match Library::open(device) {
            Ok(library) => Some(RefCell::new(library)),
            Err(reason) => {
                log::warn!("matrix products are Burn's, which are slower: {reason}");
                None
            }
        });
        Some(act(&mut library.as_ref()?.borrow_mut()))
    })
}

/// One device's, on that device's thread.
struct Library {
    context: cuda::CUcontext,
    handle: sys::cublasLtHandle_t,
    stream: cuda::CUstream,
    /// All that came before a product is done.
    before: cuda::CUevent,
    /// The product is done.
    after: cuda::CUevent,
    /// One for each stream.
    workspaces: HashMap<cuda::CUstream, cuda::CUdeviceptr>,
    plans: HashMap<Problem, Plan>,
}

impl Library {
    /// # Errors
    /// Why there is none here, in words.
    fn open(device: DeviceId) -> Result<Self, String> {
        // SAFETY: looks for a file, and asks the driver for a number that it writes.
        let version = unsafe {
            if !sys::is_culib_present() {
                return Err("cuBLASLt's library (libcublasLt) is not to be found".into());
            }
            let mut version = 0;
            cuda::cuDriverGetVersion(&mut version)
                .result()
                .map_err(|error| failed("cuDriverGetVersion", error))?;
            version
        };
        if version < DRIVER {
            return Err(format!("the driver knows CUDA {version}, not {DRIVER}"));
        }
        let ordinal = driver::device::get(device.index_id.into());
        let ordinal = ordinal.map_err(|error| failed("cuDeviceGet", error))?;
        // SAFETY: the primary context, which CubeCL computes in, is kept from now on; all that is made
        // here belongs to it, as it is current.
        unsafe {
            let context = driver::primary_ctx::retain(ordinal)
                .map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
            driver::ctx::set_current(context).map_err(|error| failed("cuCtxSetCurrent", error))?;
            let event = || {
                driver::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                    .map_err(|error| failed("cuEventCreate", error))
            };
            Ok(Self {
                context,
                handle: lt::create_handle().map_err(|error| failed("cublasLtCreate", error))?,
                stream: driver::stream::create(driver::stream::StreamKind::NonBlocking)
                    .map_err(|error| failed("cuStreamCreate", error))?,
                before: event()?,
                after: event()?,
                workspaces: HashMap::new(),
                plans: HashMap::new(),
            })
        }
    }

    /// Makes a plan for this problem, if there is none yet.
    ///
    /// # Errors
    /// What the library says if it has no algorithm for it.
    fn plan(&mut self, problem: &Problem) -> Result<(), String> {
        if !self.plans.contains_key(problem) {
            self.enter()?;
            let example = self.workspace(self.stream)?;
            let plan = Plan::new(self.handle, problem, example);
            let plan = plan.map_err(|error| failed("a plan", error))?;
            if self.plans.len() == PLANS {
                // The library has read them when it was given their products.
                self.plans.clear();
            }
            self.plans.insert(*problem, plan);
        }
        Ok(())
    }

    /// The workspace of a stream.
    fn workspace(&mut self, stream: cuda::CUstream) -> Result<cuda::CUdeviceptr, String> {
        if let Some(&workspace) = self.workspaces.get(&stream) {
            return Ok(workspace);
        }
        // SAFETY: the context is current, and the memory is kept as long as the process.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) };
        let workspace = workspace.map_err(|error| failed("cuMemAlloc", error))?;
        self.workspaces.insert(stream, workspace);
        Ok(workspace)
    }

    /// Makes CubeCL's context current.
    fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is that of `open`.
        unsafe { driver::ctx::set_current(self.context) }
            .map_err(|error| failed("cuCtxSetCurrent", error))
    }

    fn multiply(&mut self, server: &mut Server, calls: Vec<Call>) -> Result<(), String> {
        let thread = StreamId::current();
        let mut own = true;
        // Until the products are issued.
        let mut bound = Vec::new();
        // On the stream on which it was reserved, so that CubeCL adds no other fence.
        let mut address = |binding: Binding| {
            let stream = binding.stream;
            own &= stream == thread;
            bound.push(binding.clone());
            let resource = server.get_resource(binding, stream);
            let resource = resource.map_err(|error| failed("a buffer", format!("{error:?}")))?;
            Ok::<_, String>(resource.resource().ptr)
        };
        let mut ready = Vec::with_capacity(calls.len());
        for call in calls {
            // In the order of `Problem::alignments`.
            let buffers = [
                Some(call.a),
                Some(call.b),
                call.c,
                Some(call.d),
                call.vector,
            ];
            let [a, b, c, d, vector] = buffers.map(|binding| binding.map(&mut address).transpose());
            ready.push((call.problem, [a?, b?, c?, d?, vector?]));
        }
        self.enter()?;
        if own && let Some(stream) = cuda_stream::current(server) {
            return self.issue(stream, &ready);
        }
        // SAFETY: context, stream and events are those of `open`.
        unsafe {
            cuda::cuCtxRecordEvent(self.context, self.before)
                .result()
                .map_err(|error| failed("cuCtxRecordEvent", error))?;
            cuda::cuStreamWaitEvent(self.stream, self.before, 0)
                .result()
                .map_err(|error| failed("cuStreamWaitEvent", error))?;
        }
        let issued = self.issue(self.stream, &ready);
        // Even if one of several has failed: the others are on their way.
        // SAFETY: as above.
        unsafe {
            cuda::cuEventRecord(self.after, self.stream)
                .result()
                .map_err(|error| failed("cuEventRecord", error))?;
            cuda::cuCtxWaitEvent(self.context, self.after)
                .result()
                .map_err(|error| failed("cuCtxWaitEvent", error))?;
        }
        issued
    }

    /// Gives products to a stream.
    fn issue(&mut self, stream: cuda::CUstream, ready: &[Ready]) -> Result<(), String> {
        let workspace = self.workspace(stream)?;
        ready.iter().try_for_each(|(problem, pointers)| {
            for (pointer, alignment) in pointers.iter().zip(problem.alignments) {
                if pointer.is_some_and(|pointer| pointer % u64::from(alignment) != 0) {
                    return Err(format!("a buffer is not aligned as {problem:?} says"));
                }
            }
            self.plan(problem)?;
            let place = (self.handle, stream, workspace);
            self.plans[problem].queue(place, *pointers)
        })
    }
}

pub(super) fn failed(what: &str, error: impl Display) -> String {
    format!("{what}: {error}")
}
