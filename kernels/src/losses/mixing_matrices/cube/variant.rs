//! Which kernels a device gets.

use burn_cubecl::CubeRuntime;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::CubeDim;

use super::{Operands, mma, tiles};
use crate::cube::fragments::PLANE;

/// The kernels of the passes over the matrices.
#[derive(Clone, Copy)]
pub(super) enum Variant {
    /// Units with this many elements of a tile along each side.
    Portable { r: usize },
    /// Planes with this many times 16 rows.
    TensorCores { down: usize },
}

impl Variant {
    /// The fastest that the device and the inputs allow.
    pub(super) fn of<R: CubeRuntime>(inputs: &Operands<R>) -> Self {
        let Operands { b, q, .. } = inputs;
        let [_, l, _, n] = b.meta.shape().dims();
        let [_, _, _, p] = q.meta.shape().dims();
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
        let widths_fit = |width: usize| width.is_multiple_of(16) && width <= 128;
        let tensor_cores = b.dtype == q.dtype
            && dtype.size() == 2
            && widths_fit(n)
            && widths_fit(p)
            && features.matmul.mma.contains(&mma)
            && features.matmul.ldmatrix.contains(&dtype)
            && features.copy_async
            && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2];
        // The most rows first: with fewer, shared memory is read more often.
        let down = (1..=mma::down(l, n, p)).rev();
        let mut down = down.filter(|&down| memory >= mma::shared_bytes(n, p, down));
        match down.next() {
            Some(down) if tensor_cores => Self::TensorCores { down },
            _ if memory >= tiles::shared_bytes(4) => Self::Portable { r: 4 },
            _ => Self::Portable { r: 2 },
        }
    }

    /// Rows or columns of a cube.
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Portable { r } => r * tiles::SIDE,
            Self::TensorCores { down } => mma::own(down),
        }
    }

    pub(super) fn cube(self) -> CubeDim {
        match self {
            Self::Portable { .. } => CubeDim::new_2d(tiles::SIDE as u32, tiles::SIDE as u32),
            Self::TensorCores { .. } => CubeDim::new_1d((mma::PLANES * PLANE) as u32),
        }
    }
}
