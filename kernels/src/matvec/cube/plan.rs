//! How the work of a launch is shared out.

use burn_cubecl::CubeRuntime;
use cubecl::features::Plane;

use super::launch::Weight;
use crate::matvec::Activation;

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Vectors of a row that a unit reads, where there are units enough.
const READS: usize = 8;
/// Vectors of weights that a unit has under way at a time.
const HELD: usize = 16;
/// Vectors that a unit works on with two rows of a weight, and that every cube normalises for itself while
/// its weights are on their way. With more of them that takes longer than it takes the weights to come, so
/// they are normalised in a launch of their own, and a unit works on four rows.
const FEW: usize = 2;
/// Vectors of a launch, at most.
pub(super) const BATCH: usize = 8;

/// What is known of a weight when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) d_out: usize,
    pub(super) d_in: usize,
    /// The first of its cubes.
    pub(super) first_cube: usize,
    /// Where its bias is among those that there are.
    pub(super) bias: Option<usize>,
    pub(super) activation: Activation,
}

/// How the work of a launch is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Vectors that every weight is multiplied with.
    pub(super) batch: usize,
    /// Rows of a weight that a unit works on.
    pub(super) rows: usize,
    /// Units that share those rows.
    pub(super) lanes: usize,
    /// Numbers of a weight that are read together.
    pub(super) together: usize,
    /// Numbers of an input that are read together.
    pub(super) input: usize,
    /// Whether weights are 8-bit numbers, four in an element.
    pub(super) packed: bool,
    /// Whether the units of a plane can add up what they have.
    pub(super) planes: bool,
}

impl Plan {
    /// For rows that lie in one or several weights. `None` if there is no kernel for these.
    pub(super) fn new<'a, R: CubeRuntime>(
        batch: usize,
        weights: impl Iterator<Item = &'a Weight<R>> + Clone,
    ) -> Option<Self> {
        let first = weights.clone().next()?;
        let (packed, first) = (first.scales.is_some(), &first.values);
        if !alike(weights.clone()) || batch == 0 {
            return None;
        }
        let in_element = if packed { 4 } else { 1 };
        let elements = |it: &Weight<R>| it.values.meta.shape()[1];
        let sizes = first.client.io_optimized_vector_sizes(first.dtype.size());
        let fits = |size: &usize| weights.clone().all(|it| elements(it).is_multiple_of(*size));
        let together = in_element * sizes.filter(fits).max()?;
        let vectors = weights.map(|it| elements(it) * in_element / together);
        let vectors: usize = vectors.sum();
        let wanted = vectors.div_ceil(READS).next_power_of_two();
        let properties = first.client.properties();
        let hardware = &properties.hardware;
        Some(Self {
            batch,
            rows: if batch > FEW { 4 } else { 2 },
            lanes: wanted.clamp(32, UNITS),
            together,
            input: together.min(4),
            packed,
            planes: properties.features.plane.contains(Plane::Ops)
                && [hardware.plane_size_min, hardware.plane_size_max] == [32; 2],
        })
    }

    /// Whether every cube of a fan-out normalises the vectors for itself.
    pub(super) fn normalises(self) -> bool {
        self.batch <= FEW
    }

    /// Elements of a weight that are read together.
    pub(super) fn elements(self) -> usize {
        self.together / if self.packed { 4 } else { 1 }
    }

    /// Vectors of a row.
    pub(super) fn vectors(self, d_in: usize) -> usize {
        d_in / self.together
    }

    /// Vectors of a row that one unit reads.
    pub(super) fn turns(self, d_in: usize) -> usize {
        self.vectors(d_in).div_ceil(self.lanes)
    }

    /// How many of these it reads before it computes with the first.
    pub(super) fn block(self) -> usize {
        HELD / self.rows
    }

    /// Rows that a cube works on.
    pub(super) fn cube_rows(self) -> usize {
        UNITS / self.lanes * self.rows
    }

    /// Sums of a unit.
    pub(super) fn sums(self) -> usize {
        self.rows * self.batch
    }

    /// Bytes of shared memory that a cube needs beside its vectors.
    pub(super) fn shared(self) -> usize {
        4 * (UNITS * self.partials() + UNITS / 32 + self.totals())
    }

    /// Sums of a unit that are reduced at a time, where planes do not help.
    pub(super) fn partials(self) -> usize {
        if self.planes { 1 } else { self.sums().min(4) }
    }

    /// Numbers that a cube's outputs are the sums of.
    pub(super) fn totals(self) -> usize {
        UNITS / self.lanes * self.sums() * self.shares()
    }

    /// What a unit of a cube's last reduction adds up.
    pub(super) fn shares(self) -> usize {
        if self.planes { self.lanes / 32 } else { 1 }
    }
}

/// Whether all weights are of one dtype, packed or not.
pub(super) fn alike<'a, R: CubeRuntime>(mut weights: impl Iterator<Item = &'a Weight<R>>) -> bool {
    let kind = |it: &Weight<R>| (it.values.dtype, it.scales.is_some());
    let first = weights.next().map(kind);
    weights.all(|it| Some(kind(it)) == first)
}
