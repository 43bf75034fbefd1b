//! Which kernel a device gets.

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
    Portable { r: usize },
    /// Planes with this many times 16 queries.
    TensorCores { down: usize },
}

impl Variant {
    /// The fastest that the device allows for queries `[b, l, h, p]`.
    pub(super) fn of<R: CubeRuntime>(q: &CubeTensor<R>) -> Self {
        let [_, l, _, p] = q.meta.shape().dims();
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
            && memory >= mma::shared_bytes(p) + 16;
        if tensor_cores {
            // Registers allow 32 queries a plane to narrow heads.
            let is_narrow = p <= 64 && l > mma::queries(1);
            let down = if is_narrow { 2 } else { 1 };
            return Self::TensorCores { down };
        }
        let fits = (1..=4).rev().find(|r| memory >= shared_bytes(*r));
        Self::Portable {
            r: fits.unwrap_or(1),
        }
    }

    /// Queries of a cube.
    pub(super) fn queries(self) -> usize {
        match self {
            Self::Portable { r } => r * SIDE,
            Self::TensorCores { down } => mma::queries(down),
        }
    }

    pub(super) fn cube(self) -> CubeDim {
        match self {
            Self::Portable { .. } => CubeDim::new_2d(SIDE as u32, SIDE as u32),
            Self::TensorCores { .. } => CubeDim::new_1d((mma::PLANES * PLANE) as u32),
        }
    }
}
