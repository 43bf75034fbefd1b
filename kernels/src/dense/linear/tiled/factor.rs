//! A factor of a product, read in vectors of four wherever its neighbours lie next to each other.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// What one load brings.
pub(super) type Four = Const<4>;

/// Which neighbours one load brings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Order {
    /// Four along the contracted axis.
    Depth,
    /// Four rows.
    Rows,
    /// One number: sizes that no four divides, and strides of any kind.
    Single,
}

impl Order {
    /// Numbers of a load.
    pub fn vector(self) -> usize {
        match self {
            Self::Depth | Self::Rows => 4,
            Self::Single => 1,
        }
    }
}

/// A matrix `[rows, depth]`, of which the second axis is contracted, as a tensor of two axes holds it.
pub(super) struct Factor<R: CubeRuntime> {
    pub tensor: CubeTensor<R>,
    pub rows: usize,
    pub depth: usize,
    row_step: usize,
    depth_step: usize,
}

impl<R: CubeRuntime> Factor<R> {
    /// `x [rows, depth]`.
    pub fn new(x: &CubeTensor<R>) -> Self {
        let [rows, depth] = x.meta.shape().dims();
        let strides = x.meta.strides();
        Self {
            tensor: x.clone(),
            rows,
            depth,
            row_step: strides[0],
            depth_step: strides[1],
        }
    }

    /// `x [depth, rows]`.
    pub fn transposed(x: &CubeTensor<R>) -> Self {
        let as_it_is = Self::new(x);
        Self {
            rows: as_it_is.depth,
            depth: as_it_is.rows,
            row_step: as_it_is.depth_step,
            depth_step: as_it_is.row_step,
            tensor: as_it_is.tensor,
        }
    }

    pub fn order(&self) -> Order {
        let fours = |size: usize, step: usize, other: usize, count: usize| {
            // Where there is one line, its distance to the next does not matter.
            step == 1 && size.is_multiple_of(4) && (count == 1 || other.is_multiple_of(4))
        };
        if fours(self.depth, self.depth_step, self.row_step, self.rows) {
            Order::Depth
        } else if fours(self.rows, self.row_step, self.depth_step, self.depth) {
            Order::Rows
        } else {
            Order::Single
        }
    }

    pub fn view(&self) -> ViewLaunch<R> {
        ViewLaunch::new(self.rows, self.depth, self.row_step, self.depth_step)
    }
}

/// Where the elements of a [`Factor`] lie.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct View {
    pub rows: usize,
    pub depth: usize,
    pub row_step: usize,
    pub depth_step: usize,
}

/// Four elements from (`row`, `k`) on, down the rows if `order` is [`Order::Rows`] and along the contracted axis
/// otherwise; zeros beyond the rows and from `end` on.
#[cube]
pub(super) fn four<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    view: View,
    row: usize,
    k: usize,
    end: usize,
    #[comptime] order: Order,
) -> Vector<F, Four> {
    let mut values = Vector::<F, Four>::new(F::from_int(0));
    if row < view.rows {
        let at = row * view.row_step + k * view.depth_step;
        if comptime!(order == Order::Single) {
            #[unroll]
            for i in 0..4usize {
                if k + i < end {
                    values[i] = x[at + i * view.depth_step][0];
                }
            }
        } else if k < end {
            values = Vector::<F, Four>::cast_from(x[at / 4]);
        }
    }
    values
}

/// The tile of a cube, and its part of the contracted axis.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    /// The tile's first row and first column.
    pub row: usize,
    pub column: usize,
    /// The cube's part of the contracted axis.
    pub from: usize,
    pub end: usize,
    /// Whether there is such a tile: the last cubes may have none.
    pub exists: bool,
}

/// The number of rows of tiles that consecutive cubes work on, so that the data that they share stay in the cache.
const GROUP: usize = 8;

/// The place of this cube among tiles of `high` by `wide`, where `cut` of the contracted axis is a cube's part.
#[cube]
pub(super) fn place(
    a: View,
    b: View,
    cut: usize,
    #[comptime] high: usize,
    #[comptime] wide: usize,
) -> Place {
    let down = a.rows.div_ceil(high);
    let across = b.rows.div_ceil(wide);
    let tile = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let group = tile / (GROUP * across);
    let first = group * GROUP;
    let rows = clamp_max(down - clamp_max(first, down - 1), GROUP);
    let inside = tile - group * GROUP * across;
    let from = CUBE_POS_Z as usize * cut;
    Place {
        row: (first + inside % rows) * high,
        column: inside / rows * wide,
        from,
        end: clamp_max(from + cut, a.depth),
        exists: tile < down * across,
    }
}
