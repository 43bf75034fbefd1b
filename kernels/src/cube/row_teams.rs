//! Rows that adjacent units hold in their registers, for the normalisation ops: how rows are distributed over the units
//! of a cube, sums over a row, and sums over rows.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube.
pub(crate) const UNITS: usize = 256;
/// Units of a row whose sums all others of the row read.
pub(crate) const GROUP: usize = 16;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Elements of a vector of the rows, of gamma and beta, and of shares of their gradients.
    pub n: usize,
    pub m: usize,
    pub p: usize,
    /// Vectors of a row.
    pub vectors: usize,
    /// Units that hold a row together: a power of two.
    pub lanes: usize,
}

impl Plan {
    /// For rows of `d` elements, vectors of `[n, m, p]` of them, and about `elements` of them a unit.
    pub fn new(d: usize, [n, m, p]: [usize; 3], elements: usize) -> Self {
        let vectors = d / n;
        let lanes = d.div_ceil(elements).next_power_of_two().min(UNITS);
        Self {
            n,
            // Divisors of n, as all are powers of two.
            m: m.min(n),
            p: p.min(n),
            vectors,
            lanes,
        }
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.vectors * self.n
    }

    /// Vectors that a unit holds, at most.
    pub fn held(&self) -> usize {
        self.vectors.div_ceil(self.lanes)
    }

    /// Rows of a cube at a time.
    pub fn teams(&self) -> usize {
        UNITS / self.lanes
    }
}

/// The distance from one row of `x [t, d]` to the next, in vectors of `n` elements. Kernels take it as a number and `x`
/// as an array. For a tensor argument, CubeCL would copy shape and strides to the device at each launch, and the host
/// can be ahead of the device by only some hundred such copies.
pub(crate) fn row_stride<R: CubeRuntime>(x: &CubeTensor<R>, n: usize) -> u32 {
    (x.meta.strides()[0] / n) as u32
}

/// Where a unit works: its place among the units of its row, and the row's among the rows of its cube.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub lane: usize,
    pub team: usize,
}

#[cube]
pub(crate) fn place(#[comptime] plan: Plan) -> Place {
    let unit = UNIT_POS as usize;
    Place {
        lane: unit % plan.lanes,
        team: unit / plan.lanes,
    }
}

/// What the units of a row exchange.
#[derive(CubeType)]
pub(crate) struct Shared {
    /// A few numbers of every unit.
    units: SharedMemory<f32>,
    /// As many of every [`GROUP`]th of a row's units.
    groups: SharedMemory<f32>,
}

#[cube]
impl Shared {
    pub fn new(#[comptime] numbers: usize) -> Self {
        Shared {
            units: SharedMemory::<f32>::new(comptime!(numbers * UNITS)),
            groups: SharedMemory::<f32>::new(comptime!(numbers * UNITS)),
        }
    }
}

/// Replaces a few numbers of each unit by their sums over the units of its row. All units of the cube must call this
/// together. Each unit adds up the same numbers in the same order.
#[cube]
pub(crate) fn add_up(
    numbers: &mut Array<f32>,
    shared: &mut Shared,
    place: Place,
    #[comptime] count: usize,
    #[comptime] plan: Plan,
) {
    let lanes = comptime!(plan.lanes);
    let row = place.team * lanes;
    #[unroll]
    for k in 0..count {
        shared.units[k * UNITS + row + place.lane] = numbers[k];
    }
    sync_cube();
    if comptime!(lanes <= GROUP) {
        #[unroll]
        for k in 0..count {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..lanes {
                sum += shared.units[k * UNITS + row + i];
            }
            numbers[k] = sum;
        }
        // Before the next numbers are written there.
        sync_cube();
    } else {
        if place.lane < GROUP {
            #[unroll]
            for k in 0..count {
                let mut sum = 0.0f32;
                #[unroll]
                for i in 0..comptime!(lanes / GROUP) {
                    sum += shared.units[k * UNITS + row + i * GROUP + place.lane];
                }
                shared.groups[k * UNITS + row + place.lane] = sum;
            }
        }
        sync_cube();
        // The groups of the next call are written only after its first barrier, when all units have read these.
        #[unroll]
        for k in 0..count {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..GROUP {
                sum += shared.groups[k * UNITS + row + i];
            }
            numbers[k] = sum;
        }
    }
}

/// The sum of a vector's elements.
#[cube]
pub(crate) fn across<N: Size>(vector: Vector<f32, N>, #[comptime] n: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..n {
        sum += vector[i];
    }
    sum
}

/// The place in a row of a unit's vector `i`, at most the last.
#[cube]
pub(crate) fn column(place: Place, #[comptime] i: usize, #[comptime] plan: Plan) -> usize {
    let at = comptime!(i * plan.lanes) + place.lane;
    if comptime!((i + 1) * plan.lanes > plan.vectors) {
        clamp_max(at, comptime!(plan.vectors - 1))
    } else {
        at
    }
}

/// Whether a unit has a vector `i`.
#[cube]
pub(crate) fn has(place: Place, #[comptime] i: usize, #[comptime] plan: Plan) -> bool {
    comptime!((i + 1) * plan.lanes <= plan.vectors)
        || comptime!(i * plan.lanes) + place.lane < comptime!(plan.vectors)
}

/// Reads a unit's vectors of a row. In place of vectors beyond the row, it reads the row's last vector. Rows begin
/// `stride` vectors apart.
#[cube]
pub(crate) fn read_row<F: Float, N: Size>(
    of: &Array<Vector<F, N>>,
    row: usize,
    stride: u32,
    place: Place,
    held: &mut Array<Vector<F, N>>,
    #[comptime] plan: Plan,
) {
    let start = row * stride as usize;
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        held[i] = of[start + column(place, i, plan)];
    }
}

/// A vector of gamma or beta, at the place `at` of a row.
#[cube]
pub(crate) fn parameter<W: Float, M: Size, N: Size>(
    of_d: &Array<Vector<W, M>>,
    at: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    let pieces = comptime!(plan.n / plan.m);
    #[unroll]
    for piece in 0..pieces {
        let read = of_d[at * pieces + piece];
        #[unroll]
        for j in 0..plan.m {
            value[comptime!(piece * plan.m + j)] = f32::cast_from(read[j]);
        }
    }
    value
}

/// Writes what a unit has added up for the columns of its vectors to a row of the shares.
#[cube]
pub(crate) fn write_share<N: Size, P: Size>(
    sums: &Array<Vector<f32, N>>,
    shares: &mut Array<Vector<f32, P>>,
    row: usize,
    place: Place,
    #[comptime] plan: Plan,
) {
    let pieces = comptime!(plan.n / plan.p);
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        if has(place, i, plan) {
            let at = (row * plan.vectors + column(place, i, plan)) * pieces;
            let sum = sums[i];
            #[unroll]
            for piece in 0..pieces {
                let mut share = Vector::<f32, P>::new(0.0f32);
                #[unroll]
                for j in 0..plan.p {
                    share[j] = sum[comptime!(piece * plan.p + j)];
                }
                shares[at + piece] = share;
            }
        }
    }
}
