//! Which kernels a device gets.

use burn_cubecl::CubeRuntime;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::CubeDim;

use super::{Operands, mma, tiles};
use crate::cube::vector_size;

/// The kernels of the passes over the matrices.
#[derive(Clone, Copy)]
pub(super) enum Variant {
    /// Units with this many elements of a tile along each side.
    Portable { r: usize },
    /// Factors read this many elements at a time.
    TensorCores { vector: usize },
}

impl Variant {
    /// The fastest that the device and the inputs allow.
    pub(super) fn of<R: CubeRuntime>(inputs: &Operands<R>, n: usize, p: usize) -> Self {
        let Operands { b, c, q, k, .. } = inputs;
        let properties = b.client.properties();
        let (hardware, features) = (&properties.hardware, &properties.features);
        let memory = hardware.max_shared_memory_size;
        let dtype = StorageType::from(b.dtype);
        let mma = MmaConfig {
            a_type: dtype,
            b_type: dtype,
            cd_type: ElemType::Float(FloatKind::F32).into(),
            m: 16,
            n: 8,
            k: 16,
        };
        let vector = vector_size(&[b, c, q, k]).min(8);
        let widths_fit = |width: usize| width.is_multiple_of(16) && width <= 128;
        let tensor_cores = b.dtype == q.dtype
            && vector >= 2
            && widths_fit(n)
            && widths_fit(p)
            && features.matmul.mma.contains(&mma)
            && features.matmul.ldmatrix.contains(&dtype)
            && [hardware.plane_size_min, hardware.plane_size_max] == [mma::PLANE as u32; 2]
            && memory >= mma::shared_bytes(n, p);
        if tensor_cores {
            Self::TensorCores { vector }
        } else if memory >= tiles::shared_bytes(4) {
            Self::Portable { r: 4 }
        } else {
            Self::Portable { r: 2 }
        }
    }

    /// Rows or columns of a cube.
    pub(super) fn tile(self) -> usize {
        match self {
            Self::Portable { r } => r * tiles::SIDE,
            Self::TensorCores { .. } => mma::TILE,
        }
    }

    pub(super) fn cube(self) -> CubeDim {
        let (x, y) = match self {
            Self::Portable { .. } => (tiles::SIDE, tiles::SIDE),
            Self::TensorCores { .. } => (mma::PLANE, mma::PLANES),
        };
        CubeDim::new_2d(x as u32, y as u32)
    }
}
