//! A cache of kernel descriptions for the ops of decoding: a kernel is described once and launched many times.
//!
//! The `launch_unchecked` that CubeCL 0.10 generates describes its kernel again for each launch: it copies the device's
//! properties, writes the kernel's name, registers its types, and, on the device's thread, copies the kernel's
//! parameters to find it among the compiled kernels. This is the larger part of a launch, and a decoding step makes the
//! same few launches about seventy times. Here each thread keeps the descriptions. What differs between launches, the
//! buffers and the numbers, goes to a [`KernelLauncher`] as in the generated code. On wgpu it is also noted while a
//! step is recorded.

use std::any::TypeId;
use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ScalarArgType;
use cubecl::device_handle::DeviceHandle;
use cubecl::prelude::*;

#[cfg(feature = "wgpu")]
use super::noted_launches::Arguments;
use super::recording;

/// A kernel that has been described.
#[derive(Clone)]
pub(crate) struct Again(Arc<Kernel>);

struct Kernel {
    id: KernelId,
    definition: Box<dyn CubeKernel>,
}

impl KernelMetadata for Again {
    fn name(&self) -> &'static str {
        self.0.definition.name()
    }

    fn id(&self) -> KernelId {
        self.0.id.clone()
    }

    fn address_type(&self) -> StorageType {
        self.0.definition.address_type()
    }
}

impl CubeKernel for Again {
    fn define(&self) -> KernelDefinition {
        self.0.definition.define()
    }
}

/// The backend, the device, and what a kernel is made with.
type Key<K> = (TypeId, DeviceId, K);

/// Kernels of one function, by what they are made with. They are few, so that looking at each is faster than
/// a hash.
pub(crate) struct Described<K> {
    kernels: RefCell<Vec<(Key<K>, Again)>>,
}

impl<K> Default for Described<K> {
    fn default() -> Self {
        Self {
            kernels: RefCell::default(),
        }
    }
}

impl<K: Clone + Eq> Described<K> {
    /// The kernel that `describe` makes with `with`, on the device of `like`.
    pub(crate) fn get<R: CubeRuntime, D: CubeKernel>(
        &self,
        like: &CubeTensor<R>,
        with: K,
        describe: impl FnOnce(K) -> D,
    ) -> Again {
        let key = (TypeId::of::<R>(), like.device.id(), with);
        let known = |kernels: &Vec<(_, Again)>| {
            let mut kernels = kernels.iter();
            kernels
                .find(|(known, _)| *known == key)
                .map(|(_, kernel)| kernel.clone())
        };
        if let Some(kernel) = known(&self.kernels.borrow()) {
            return kernel;
        }
        let definition = describe(key.2.clone());
        let kernel = Again(Arc::new(Kernel {
            id: definition.id(),
            definition: Box::new(definition),
        }));
        self.kernels.borrow_mut().push((key, kernel.clone()));
        kernel
    }
}

/// What a kernel is launched with, in the order of its arguments.
pub(crate) struct Launcher<R: CubeRuntime> {
    launcher: KernelLauncher<R>,
    #[cfg(feature = "wgpu")]
    noted: Option<Arguments>,
}

impl<R: CubeRuntime> Launcher<R> {
    pub(crate) fn new(settings: KernelSettings) -> Self {
        Self {
            #[cfg(feature = "wgpu")]
            noted: Arguments::noted(settings.address_type),
            launcher: KernelLauncher::new(settings),
        }
    }

    /// An array, whose elements are read as `ty`.
    pub(crate) fn array(&mut self, array: ArrayArg<R>, ty: Type) {
        #[cfg(feature = "wgpu")]
        if let Some(noted) = &mut self.noted {
            noted.array(&array, ty);
        }
        self.launcher.register_array(array, ty);
    }

    pub(crate) fn scalar<C: ScalarArgType>(&mut self, scalar: C) {
        #[cfg(feature = "wgpu")]
        if let Some(noted) = &mut self.noted {
            noted.scalar(scalar);
        }
        self.launcher.register_scalar(scalar);
    }

    /// A size, as wide as an index.
    pub(crate) fn size(&mut self, size: usize) {
        #[cfg(feature = "wgpu")]
        if let Some(noted) = &mut self.noted {
            noted.size(size);
        }
        <usize as LaunchArg>::register(size, &mut self.launcher);
    }
}

/// Launches a kernel, and makes CubeCL's device thread submit it at once. By itself this thread starts only when 32
/// launches are pending, so that after each token the GPU would wait until the host has made 32 launches.
///
/// # Safety
/// The kernel must stay within the buffers and numbers that `launcher` has.
pub(crate) unsafe fn launch<R: CubeRuntime>(
    launcher: Launcher<R>,
    count: CubeCount,
    kernel: Again,
    like: &CubeTensor<R>,
) {
    recording::launches();
    #[cfg(feature = "wgpu")]
    let noted = launcher
        .noted
        .map(|noted| (noted, kernel.clone(), count.clone()));
    // SAFETY: the caller's.
    unsafe {
        launcher
            .launcher
            .launch_unchecked(count, kernel, &like.client)
    };
    #[cfg(feature = "wgpu")]
    if let Some((noted, kernel, count)) = noted {
        noted.launched(kernel, &count, like);
    }
    DeviceHandle::<R::Server>::new(like.device.id()).flush_queue();
}

/// The settings of a kernel, except its name.
pub(crate) fn settings(units: usize, width: AddressType) -> KernelSettings {
    KernelSettings::default()
        .cube_dim(CubeDim::new_1d(units as u32))
        .address_type(width)
}

/// An array over the elements of `x`, which lie without gaps or are addressed by its strides.
pub(crate) fn array<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    recording::touches(&x.handle);
    // SAFETY: the length is that of the tensor.
    unsafe { ArrayArg::from_raw_parts(x.handle.clone(), x.meta.num_elements()) }
}

/// An array that is no alias of another argument.
pub(crate) const ARRAY: ArrayCompilationArg = ArrayCompilationArg { inplace: None };

/// An argument of `n` of these, in the form in which a kernel is made with it.
pub(crate) fn arrays<C>(n: usize) -> SequenceCompilationArg<C>
where
    C: LaunchArg<CompilationArg = ArrayCompilationArg>,
{
    std::iter::repeat_n(ARRAY, n).collect()
}

/// An argument of one of these or none.
pub(crate) fn optional<C>(given: bool) -> ComptimeOptionCompilationArg<C>
where
    C: LaunchArg<CompilationArg = ArrayCompilationArg>,
{
    if given {
        ComptimeOptionCompilationArg::Some(ARRAY)
    } else {
        ComptimeOptionCompilationArg::None
    }
}
