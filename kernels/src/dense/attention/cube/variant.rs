//! Which kernels a device gets.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::CubeDim;

use super::mma;
use crate::cube::fragments::PLANE;
use crate::cube::tiles::{SIDE, shared_bytes};

/// The kernels.
#[derive(Clone, Copy)]
pub(super) enum Variant {
    /// Units with this many elements of a tile along each side.
    Portable {
        r: usize,
    },
    TensorCores,
}

impl Variant {
    /// The fastest that the device allows for queries `[b, l, h, p]`, where tensor cores need `bytes` of shared memory.
    pub(super) fn of<R: CubeRuntime>(q: &CubeTensor<R>, bytes: usize) -> Self {
        let [_, _, _, p] = q.meta.shape().dims();
        let properties = q.client.properties();
        let (hardware, features) = (&properties.hardware, &properties.features);
        let memory = hardware.max_shared_memory_size;
        let dtype = StorageType::from(q.dtype);
        let mma = MmaConfig {
            a_type: dtype,
            b_type: dtype,
            cd_type: ElemType::Float(FloatKind::F32).into(),
            m: 16,
            n: 8,
            k: 16,
        };
        let tensor_cores = dtype.size() == 2
            && p.is_multiple_of(16)
            && p <= 128
            && features.matmul.mma.contains(&mma)
            && features.matmul.ldmatrix.contains(&dtype)
            && features.copy_async
            && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
            && memory >= bytes;
        if tensor_cores {
            return Self::TensorCores;
        }
        let fits = (1..=4).rev().find(|r| memory >= shared_bytes(*r));
        Self::Portable {
            r: fits.unwrap_or(1),
        }
    }

    pub(super) fn cube(self) -> CubeDim {
        match self {
            Self::Portable { .. } => CubeDim::new_2d(SIDE as u32, SIDE as u32),
            Self::TensorCores => CubeDim::new_1d((mma::PLANES * PLANE) as u32),
        }
    }
}
