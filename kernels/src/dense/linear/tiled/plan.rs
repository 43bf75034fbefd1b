//! Which kernel a product takes, with which tiles, and whether its contracted axis is cut.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

use super::fragments::{self, Layout};
use super::registers;
use crate::cube::fragments::PLANE;

/// Cubes that keep a device busy: with fewer large tiles than this, small ones are taken, and with fewer than twice
/// as many small ones, the contracted axis is cut.
const BUSY: usize = 128;
/// A cube's part of the contracted axis is at least this.
const LEAST: usize = 256;

/// The kernel and its tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kernel {
    /// Units with this many sums along each side of a tile.
    Registers {
        r: usize,
    },
    Fragments(Layout),
}

impl Kernel {
    /// The kernel for tiles of 128 by 128, and that for 64 by 64, on this device.
    fn of<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> [Self; 2] {
        let properties = client.properties();
        let (hardware, features) = (&properties.hardware, &properties.features);
        let dtype = StorageType::from(dtype);
        let config = MmaConfig {
            a_type: dtype,
            b_type: dtype,
            cd_type: ElemType::Float(FloatKind::F32).into(),
            m: fragments::SIDE as u32,
            n: fragments::SIDE as u32,
            k: fragments::SIDE as u32,
        };
        let large = Layout::LARGE;
        let together = dtype.size() == 2
            && features.matmul.cmma.contains(&config)
            && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
            && hardware.max_shared_memory_size >= large.shared_bytes()
            && hardware.max_units_per_cube >= large.units() as u32;
        if together {
            return [large, Layout::SMALL].map(Self::Fragments);
        }
        let fits = |r: usize| hardware.max_shared_memory_size >= registers::shared_bytes(r);
        let large = if fits(8) { 8 } else { 4 };
        [large, 4].map(|r| Self::Registers { r })
    }

    pub fn tile(self) -> usize {
        match self {
            Self::Registers { r } => registers::tile(r),
            Self::Fragments(layout) => layout.tile(),
        }
    }

    fn depth(self) -> usize {
        match self {
            Self::Registers { .. } => registers::DEPTH,
            Self::Fragments(_) => fragments::DEPTH,
        }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub kernel: Kernel,
    /// Tiles of the output.
    pub tiles: usize,
    /// Parts of the contracted axis, whose products are added up afterwards.
    pub shares: usize,
    /// Of the contracted axis in each of these.
    pub cut: usize,
}

impl Plan {
    /// For `rows` by `columns` sums of `depth` products each, none of them 0.
    pub fn new<R: CubeRuntime>(
        client: &ComputeClient<R>,
        dtype: DType,
        [rows, columns, depth]: [usize; 3],
    ) -> Self {
        Self::of(Kernel::of(client, dtype), [rows, columns, depth])
    }

    fn of([large, small]: [Kernel; 2], [rows, columns, depth]: [usize; 3]) -> Self {
        let tiles = |kernel: Kernel| rows.div_ceil(kernel.tile()) * columns.div_ceil(kernel.tile());
        let kernel = if tiles(large) >= BUSY { large } else { small };
        let tiles = tiles(kernel);
        let wanted = (2 * BUSY).div_ceil(tiles).min(depth / LEAST).max(1);
        let cut = if tiles >= BUSY {
            depth
        } else {
            depth.div_ceil(wanted)
        };
        let cut = cut.next_multiple_of(kernel.depth());
        Self {
            kernel,
            tiles,
            shares: depth.div_ceil(cut),
            cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: [Kernel; 2] = [Kernel::Registers { r: 8 }, Kernel::Registers { r: 4 }];

    #[test]
    fn large_products_take_large_tiles_whole() {
        let plan = Plan::of(KERNELS, [2048, 8192, 2048]);
        assert_eq!(plan.kernel, KERNELS[0]);
        assert_eq!((plan.tiles, plan.shares, plan.cut), (1024, 1, 2048));
    }

    #[test]
    fn few_tiles_are_cut_along_the_contracted_axis() {
        let plan = Plan::of(KERNELS, [64, 2048, 2048]);
        assert_eq!(plan.kernel, KERNELS[1]);
        assert_eq!((plan.tiles, plan.shares, plan.cut), (32, 8, 256));
        let plan = Plan::of(KERNELS, [1, 1, 5]);
        assert_eq!((plan.tiles, plan.shares, plan.cut), (1, 1, 16));
    }

    #[test]
    fn no_share_is_empty() {
        for depth in 1..3000 {
            let plan = Plan::of(KERNELS, [16, 16, depth]);
            assert!((plan.shares - 1) * plan.cut < depth && plan.shares * plan.cut >= depth);
        }
    }
}
