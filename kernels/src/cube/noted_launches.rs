//! Notes the launches of a decoding step on wgpu, so that the step can be repeated.
//!
//! Every launch through [`launch_cache`](super::launch_cache) is noted here, with its kernel and its arguments. Other
//! work, such as one of Burn's own ops, does not go through it and would be missing in a repeated step. Therefore all
//! work that the device was given is counted too. CubeCL 0.10 holds back the launches of a thread until there are 32 of
//! them, or until something is read; the count is taken before that. If CubeCL submitted launches of the thread to the
//! GPU between two counts, they can no longer be counted, and the step is not repeated. (Only 64 consecutive copies
//! right after a count, or a multiple of 64, would go unnoticed.)

use std::cell::RefCell;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Binding;
use cubecl::{InfoBuilder, ScalarArgType};

use super::launch_cache::Again;

/// Launches between two counts: fewer than CubeCL keeps.
const STRIDE: usize = 16;

thread_local! {
    static NOTES: RefCell<Option<Notes>> = const { RefCell::new(None) };
}

/// The work of the thread that the device had held back, and that is now submitted to the GPU.
pub(crate) struct Settled {
    /// The number of launches and copies that were held back.
    pub kept: usize,
    /// A text about the work of the thread that the GPU had been given before. It changes each time that launches are
    /// submitted.
    pub before: String,
    /// The same text after the submission.
    pub after: String,
}

/// Submits the held-back work of this thread to the GPU; `None` if it cannot be counted.
pub(crate) type Settle = fn(DeviceId) -> Option<Settled>;

struct Notes {
    settle: Settle,
    launches: Vec<Launched>,
    /// [`Settled::after`] of the last count; `None` as soon as the device was given any work that is not a noted
    /// launch.
    given: Option<String>,
}

impl Notes {
    /// Counts the work that the device was given since the last count. It should be exactly the last `launches` noted
    /// launches.
    fn count(&mut self, device: DeviceId, launches: usize) {
        let settled = (self.settle)(device).filter(|settled| {
            settled.kept == launches && Some(&settled.before) == self.given.as_ref()
        });
        self.given = settled.map(|settled| settled.after);
    }
}

/// A launch.
pub(crate) struct Launched {
    pub kernel: Again,
    pub count: [u32; 3],
    /// The arrays in the order of the kernel's arguments.
    pub arrays: Vec<Binding>,
    /// Numbers and lengths, as the kernel reads them.
    pub info: Vec<u64>,
}

/// The arguments of a launch that were registered so far.
pub(crate) struct Arguments {
    arrays: Vec<Binding>,
    info: InfoBuilder,
    width: AddressType,
}

impl Arguments {
    /// For a kernel whose indices have this width, if the thread takes notes.
    pub(crate) fn noted(width: AddressType) -> Option<Self> {
        NOTES.with_borrow(Option::is_some).then(|| Self {
            arrays: Vec::new(),
            info: InfoBuilder::default(),
            width,
        })
    }

    /// See [`KernelLauncher::register_array`].
    pub(crate) fn array<R: CubeRuntime>(&mut self, array: &ArrayArg<R>, ty: Type) {
        if let ArrayArg::Handle { handle } = array {
            let held = handle.handle.size_in_used() / ty.size() as u64;
            let length = (array.size() / ty.vector_size()) as u64;
            self.info.metadata.register_array(held, length, self.width);
            self.arrays.push(handle.handle.clone());
        }
    }

    /// See [`KernelLauncher::register_scalar`].
    pub(crate) fn scalar<C: ScalarArgType>(&mut self, scalar: C) {
        self.info.scalars.push(scalar);
    }

    /// A size, as wide as an index.
    pub(crate) fn size(&mut self, size: usize) {
        match self.width {
            AddressType::U32 => self.info.scalars.push(size as u32),
            AddressType::U64 => self.info.scalars.push(size as u64),
        }
    }

    /// Notes the launch, which was made on the device of `like`.
    pub(crate) fn launched<R: CubeRuntime>(
        mut self,
        kernel: Again,
        count: &CubeCount,
        like: &CubeTensor<R>,
    ) {
        let CubeCount::Static(x, y, z) = *count else {
            NOTES.with_borrow_mut(|notes| {
                notes.iter_mut().for_each(|notes| notes.given = None);
            });
            return;
        };
        let launched = Launched {
            kernel,
            count: [x, y, z],
            arrays: self.arrays,
            info: self.info.finish(self.width).data,
        };
        NOTES.with_borrow_mut(|notes| {
            let Some(notes) = notes else { return };
            notes.launches.push(launched);
            if notes.launches.len().is_multiple_of(STRIDE) {
                notes.count(like.device.id(), STRIDE);
            }
        });
    }
}

/// The result of `step`, and its launches on the device; `None` if it gave the device anything else.
pub(crate) fn noted<T>(
    device: DeviceId,
    settle: Settle,
    step: impl FnOnce() -> T,
) -> (T, Option<Vec<Launched>>) {
    /// Ends the notes even if the step panics.
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            NOTES.set(None);
        }
    }
    NOTES.set(Some(Notes {
        settle,
        launches: Vec::new(),
        given: settle(device).map(|settled| settled.after),
    }));
    let ends = Ends;
    let result = step();
    let notes = NOTES.take();
    drop(ends);
    let launches = notes.and_then(|mut notes| {
        notes.count(device, notes.launches.len() % STRIDE);
        notes.given.map(|_| notes.launches)
    });
    (result, launches)
}
