//! The launches of a step of decoding that is to be repeated on wgpu, as they were made.
//!
//! What a kernel is compiled for and what it is launched with pass through [`launch_cache`](super::launch_cache), which
//! notes them here. What does not pass there, such as an op of Burn's, would be missing in a repeated step. So all that the
//! device was given is counted too: CubeCL 0.10 keeps launches until there are 32 of a thread, or until something is
//! read, and the count is taken before that. Where it gave the GPU launches of the thread between two counts, they are no
//! longer there to be counted, and the step is not repeated. (It would take 64 copies in a row right behind a count, or a
//! multiple of them, to leave no trace.)

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

/// What a device had kept back of the thread, which is with the GPU now.
pub(crate) struct Settled {
    /// Launches and copies.
    pub kept: usize,
    /// What is known of what the GPU had been given of the thread before: another text each time that launches were.
    pub before: String,
    /// The same now.
    pub after: String,
}

/// Gives the GPU what the device keeps back of this thread; `None` where that cannot be counted.
pub(crate) type Settle = fn(DeviceId) -> Option<Settled>;

struct Notes {
    settle: Settle,
    launches: Vec<Launched>,
    /// [`Settled::after`] of the last count; `None` once the device was given something else than launches that are
    /// noted.
    given: Option<String>,
}

impl Notes {
    /// Counts what the device was given since the last count, which should be the last `launches` of those that are noted.
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

/// What a launch is made with, as far as it is known.
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
