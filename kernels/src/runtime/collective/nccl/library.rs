//! `libnccl`, opened at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use super::super::{CollectiveError, JobId};

/// The names under which distributions and Python packages have it, the most exact first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclSuccess`; every other result is a failure or, of a communicator that does not block, on its way.
pub(super) const SUCCESS: c_int = 0;
/// `ncclFloat32`.
const FLOAT32: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Reduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> c_int;
type Gather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, CUstream) -> c_int;

/// The functions that are used of it, as `nccl.h` declares them. Enumerations are passed as numbers: a newer library
/// may return some that no list here knows.
pub(super) struct Nccl {
    version: c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    all_reduce: Reduce,
    reduce_scatter: Reduce,
    all_gather: Gather,
    broadcast: Reduce,
    /// As long as the functions are.
    _library: Library,
}

/// The library of this process.
///
/// # Errors
/// Why there is none, in words.
pub(super) fn open() -> Result<&'static Nccl, CollectiveError> {
    static NCCL: OnceLock<Result<Nccl, CollectiveError>> = OnceLock::new();
    let opened = NCCL.get_or_init(Nccl::open).as_ref();
    opened.map_err(Clone::clone)
}

impl Nccl {
    fn open() -> Result<Self, CollectiveError> {
        if std::env::var_os("NCCL_NVLS_ENABLE").is_none() {
            // SAFETY: the library reads its variables when ranks join, which is after this; other threads of this
            // program that may read the environment at this time do so through std, which has a lock for it, or in
            // libraries that have been opened before.
            unsafe { std::env::set_var("NCCL_NVLS_ENABLE", "0") };
        }
        let mut reasons = vec![];
        // SAFETY: NCCL's constructors do nothing but prepare itself.
        let opened = NAMES
            .iter()
            .find_map(|name| match unsafe { Library::new(*name) } {
                Ok(library) => Some(library),
                Err(error) => {
                    reasons.push(error.to_string());
                    None
                }
            });
        let library = opened.ok_or_else(|| {
            CollectiveError(format!(
                "ranks on NVIDIA GPUs need NCCL, and libnccl is not to be found ({}); install it (Debian: libnccl2; \
                 Python: nvidia-nccl-cu12 or -cu13) and name its folder in LD_LIBRARY_PATH",
                reasons.join("; ")
            ))
        })?;
        // SAFETY: the types are those of `nccl.h` of version 2.
        unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int) -> c_int =
                function(&library, "ncclGetVersion")?;
            let mut version = 0;
            if get_version(&mut version) != SUCCESS || version < 2_000 {
                return Err(CollectiveError(format!(
                    "libnccl is of version {version}, and not of 2"
                )));
            }
            Ok(Self {
                version,
                get_unique_id: function(&library, "ncclGetUniqueId")?,
                comm_init_rank: function(&library, "ncclCommInitRank")?,
                comm_abort: function(&library, "ncclCommAbort")?,
                comm_get_async_error: function(&library, "ncclCommGetAsyncError")?,
                get_error_string: function(&library, "ncclGetErrorString")?,
                get_last_error: function(&library, "ncclGetLastError")?,
                group_start: function(&library, "ncclGroupStart")?,
                group_end: function(&library, "ncclGroupEnd")?,
                all_reduce: function(&library, "ncclAllReduce")?,
                reduce_scatter: function(&library, "ncclReduceScatter")?,
                all_gather: function(&library, "ncclAllGather")?,
                broadcast: function(&library, "ncclBroadcast")?,
                _library: library,
            })
        }
    }

    /// As `2.21.5`.
    pub(super) fn version(&self) -> String {
        // Since 2.9 there are two digits more for the minor version.
        let (major, minor) = if self.version < 10_000 {
            (self.version / 1000, self.version % 1000 / 100)
        } else {
            (self.version / 10_000, self.version % 10_000 / 100)
        };
        format!("{major}.{minor}.{}", self.version % 100)
    }

    /// A new id of a job.
    pub(super) fn new_id(&self) -> Result<JobId, CollectiveError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the library writes the id.
        let result = unsafe { (self.get_unique_id)(&mut id) };
        self.succeeded("ncclGetUniqueId", result)?;
        Ok(JobId(id.0))
    }

    /// A communicator for the device whose context is current; waits for all ranks.
    pub(super) fn init(
        &self,
        world: usize,
        id: JobId,
        rank: usize,
    ) -> Result<Comm, CollectiveError> {
        let number = |number: usize| {
            c_int::try_from(number).map_err(|_| CollectiveError(format!("{number} ranks")))
        };
        let mut comm = std::ptr::null_mut();
        // SAFETY: the library writes the communicator; the id was made by it.
        let result = unsafe {
            (self.comm_init_rank)(&mut comm, number(world)?, UniqueId(id.0), number(rank)?)
        };
        self.succeeded("ncclCommInitRank", result)?;
        Ok(comm)
    }

    /// What has failed of `comm` while nothing was asked of it.
    ///
    /// # Safety
    /// `comm` is one of [`init`](Self::init) that was not aborted.
    pub(super) unsafe fn failure(&self, comm: Comm) -> Option<String> {
        let mut state = SUCCESS;
        // SAFETY: by the caller.
        let result = unsafe { (self.comm_get_async_error)(comm, &mut state) };
        let worst = if result == SUCCESS { state } else { result };
        // 7 is ncclInProgress.
        (worst != SUCCESS && worst != 7).then(|| self.words(worst, comm))
    }

    /// Ends all that `comm` does.
    ///
    /// # Safety
    /// As [`failure`](Self::failure); nothing may be asked of it afterwards.
    pub(super) unsafe fn abort(&self, comm: Comm) {
        // SAFETY: by the caller.
        unsafe { (self.comm_abort)(comm) };
    }

    /// Does the operations that `queue` queues as one.
    pub(super) fn together(
        &self,
        queue: impl FnOnce() -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        // SAFETY: the two take nothing, and the thread is the same; a group that was begun is ended whatever has failed.
        unsafe {
            self.succeeded("ncclGroupStart", (self.group_start)())?;
            let queued = queue();
            let ended = self.succeeded("ncclGroupEnd", (self.group_end)());
            queued.and(ended)
        }
    }

    /// Queues the sum of `count` elements on `stream`.
    ///
    /// # Safety
    /// The buffers have as many elements until the stream is done with it; `comm` is one of [`init`](Self::init).
    pub(super) unsafe fn all_reduce(
        &self,
        [from, to]: [u64; 2],
        count: usize,
        comm: Comm,
        stream: CUstream,
    ) -> Result<(), CollectiveError> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: by the caller.
        let result = unsafe { (self.all_reduce)(from, to, count, FLOAT32, SUM, comm, stream) };
        self.succeeded("ncclAllReduce", result)
    }

    /// Queues the sum of which each rank gets `count` elements.
    ///
    /// # Safety
    /// As [`all_reduce`](Self::all_reduce); the first buffer has `count` elements for each rank.
    pub(super) unsafe fn reduce_scatter(
        &self,
        [from, to]: [u64; 2],
        count: usize,
        comm: Comm,
        stream: CUstream,
    ) -> Result<(), CollectiveError> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: by the caller.
        let result = unsafe { (self.reduce_scatter)(from, to, count, FLOAT32, SUM, comm, stream) };
        self.succeeded("ncclReduceScatter", result)
    }

    /// Queues that all ranks get the `count` elements of each.
    ///
    /// # Safety
    /// As [`all_reduce`](Self::all_reduce); the second buffer has `count` elements for each rank.
    pub(super) unsafe fn all_gather(
        &self,
        [from, to]: [u64; 2],
        count: usize,
        comm: Comm,
        stream: CUstream,
    ) -> Result<(), CollectiveError> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: by the caller.
        let result = unsafe { (self.all_gather)(from, to, count, FLOAT32, comm, stream) };
        self.succeeded("ncclAllGather", result)
    }

    /// Queues that all ranks get the `count` elements of rank 0.
    ///
    /// # Safety
    /// As [`all_reduce`](Self::all_reduce).
    pub(super) unsafe fn broadcast(
        &self,
        [from, to]: [u64; 2],
        count: usize,
        comm: Comm,
        stream: CUstream,
    ) -> Result<(), CollectiveError> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: by the caller. The fifth argument is the rank that is copied.
        let result = unsafe { (self.broadcast)(from, to, count, FLOAT32, 0, comm, stream) };
        self.succeeded("ncclBroadcast", result)
    }

    fn succeeded(&self, what: &str, result: c_int) -> Result<(), CollectiveError> {
        if result == SUCCESS {
            return Ok(());
        }
        let words = self.words(result, std::ptr::null_mut());
        Err(CollectiveError(format!("{what}: {words}")))
    }

    /// What the library says of `result`.
    fn words(&self, result: c_int, comm: Comm) -> String {
        // SAFETY: both return texts of the library's own that last, or null; the second takes null for the last error
        // of the process.
        let [what, why] = unsafe {
            [(self.get_error_string)(result), (self.get_last_error)(comm)].map(|text| {
                if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            })
        };
        if why.is_empty() {
            what
        } else {
            format!("{what} ({})", why.trim())
        }
    }
}

/// The function called `name`.
///
/// # Safety
/// It has the type `F`.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, CollectiveError> {
    // SAFETY: by the caller.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|function| *function).map_err(|error| {
        CollectiveError(format!(
            "libnccl lacks {name}: {error}; install NCCL 2.14 or later"
        ))
    })
}
