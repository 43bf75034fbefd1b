//! What a program asks about the machine behind a backend.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element};

use crate::runtime::collective::{Collective, CollectiveError, JobId, Place};

/// Memory of a device that this program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that tensors take.
    pub in_use: u64,
    /// Bytes that are reserved on the device for tensors, those in use included.
    pub reserved: u64,
}

/// How a backend's device works.
pub trait Machine: Backend {
    /// How many passes over different sequences it is best to run side by side, each on a share of
    /// the cores: as many as there are cores on a CPU, and one on a GPU, which a pass keeps busy.
    fn lanes() -> usize {
        1
    }

    /// Whether the device only queues work and computes it later. Then a read of a result waits for all work that was
    /// queued before it.
    fn queues() -> bool {
        false
    }

    /// Whether networks may have their parameters in `dtype`: true for the backend's own dtype, and for half
    /// precision if every op and the device support it.
    fn holds(_device: &Self::Device, dtype: DType) -> bool {
        dtype == <Self::FloatElem as Element>::dtype()
    }

    /// The memory of `device` that the tensors of this thread use; `None` if tensors are in the memory of the host.
    fn memory(_device: &Self::Device) -> Option<Memory> {
        None
    }

    /// The size of the memory of `device`, in bytes; `None` if it is not known, or if tensors are in the memory of
    /// the host.
    fn memory_size(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Whether ranks on this backend can exchange tensors directly between the memories of their devices, after
    /// [`join`](Self::join).
    fn joins() -> bool {
        false
    }

    /// Joins the other ranks of the job `id`, and waits until all of them have joined. Each rank has one device.
    ///
    /// # Errors
    /// [`CollectiveError`] if [`joins`](Self::joins) is false for the backend, or if joining failed.
    fn join(
        _device: &Self::Device,
        _place: Place,
        _id: JobId,
    ) -> Result<Box<dyn Collective<Self>>, CollectiveError> {
        Err(CollectiveError(
            "ranks of this backend exchange tensors through the memory of the host".into(),
        ))
    }
}

impl<B: Machine, C: CheckpointStrategy> Machine for Autodiff<B, C> {
    fn lanes() -> usize {
        B::lanes()
    }

    fn queues() -> bool {
        B::queues()
    }

    fn holds(device: &Self::Device, dtype: DType) -> bool {
        B::holds(device, dtype)
    }

    fn memory(device: &Self::Device) -> Option<Memory> {
        B::memory(device)
    }

    fn memory_size(device: &Self::Device) -> Option<u64> {
        B::memory_size(device)
    }
}

#[cfg(feature = "flex")]
impl Machine for burn_flex::Flex {
    fn lanes() -> usize {
        rayon::current_num_threads()
    }
}

#[cfg(feature = "reference")]
impl<E, I, Q> Machine for burn_ndarray::NdArray<E, I, Q>
where
    E: burn_ndarray::FloatNdArrayElement,
    I: burn_ndarray::IntNdArrayElement,
    Q: burn_ndarray::QuantElement,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>>,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<I>>,
{
    fn lanes() -> usize {
        rayon::current_num_threads()
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl<R, F, I, T> Machine for burn_cubecl::CubeBackend<R, F, I, T>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    T: burn_cubecl::BoolElement,
{
    fn queues() -> bool {
        true
    }

    fn holds(device: &Self::Device, dtype: DType) -> bool {
        crate::cube::computes_in_f32(dtype) && Self::supports_dtype(device, dtype)
    }

    fn memory(device: &Self::Device) -> Option<Memory> {
        // An error is reported when the program waits for the device.
        let usage = R::client(device).memory_usage().ok()?;
        Some(Memory {
            in_use: usage.bytes_in_use,
            reserved: usage.bytes_reserved,
        })
    }

    fn memory_size(device: &Self::Device) -> Option<u64> {
        // CubeCL 0.10 does not report the size itself, but it sets its largest page to a quarter of an NVIDIA GPU's
        // memory.
        let largest = || R::client(device).properties().memory.max_page_size;
        crate::cube::is_cuda::<R>().then(|| 4 * largest())
    }

    fn joins() -> bool {
        crate::cube::is_cuda::<R>()
    }

    #[cfg(feature = "cuda")]
    fn join(
        device: &Self::Device,
        place: Place,
        id: JobId,
    ) -> Result<Box<dyn Collective<Self>>, CollectiveError> {
        use burn::tensor::backend::DeviceOps;

        use crate::runtime::collective::nccl;

        if !Self::joins() {
            return Err(CollectiveError("ranks join on NVIDIA GPUs alone".into()));
        }
        let ranks = nccl::join(device.id(), place, id)?;
        Ok(Box::new(nccl::RanksOf::<R>::new(ranks)))
    }
}
