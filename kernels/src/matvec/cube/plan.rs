//! How the work of a launch is shared out.

use burn_cubecl::CubeRuntime;
use cubecl::features::Plane;

use super::launch::Weight;
use super::mma;
use crate::cube::matrix::PLANE;
use crate::matvec::Activation;

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Vectors of a row that a unit reads without tensor cores, where there are units enough.
const READS: usize = 8;
/// Vectors of weights that a unit has under way at a time, without tensor cores.
const HELD: usize = 16;
/// Vectors that every cube normalises for itself while its weights are on their way, and that without tensor
/// cores a unit works on with two rows of a weight. With more of them that takes longer than it takes the weights
/// to come, so they are normalised in a launch of their own, and a unit works on four rows.
const FEW: usize = 2;
/// Cubes of a launch that keep all of a large GPU busy.
const CUBES: usize = 120;
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
    /// Whether every cube normalises the vectors for itself, into shared memory.
    pub(super) normalises: bool,
    /// Whether tensor cores multiply. The weights and the device decide it and not the number of vectors, so that
    /// a row has the same bits in any company.
    pub(super) tensor_cores: bool,
}

impl Plan {
    /// For `d_out` rows that lie in one or several weights. `None` if there is no kernel for these.
    pub(super) fn new<'a, R: CubeRuntime>(
        batch: usize,
        d_out: usize,
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
        let properties = first.client.properties();
        let hardware = &properties.hardware;
        let planes = properties.features.plane.contains(Plane::Ops)
            && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2];
        let tensor_cores = planes
            && (packed || first.dtype.size() == 2)
            && together.is_multiple_of(2)
            && properties.features.matmul.mma.contains(&mma::config());
        let mut plan = Self {
            batch,
            rows: 1,
            lanes: mma::LANES,
            together,
            input: together.min(4),
            packed,
            planes,
            normalises: false,
            tensor_cores,
        };
        if tensor_cores {
            // The more rows, the fewer cubes read the vectors.
            let many = |rows: &usize| d_out.div_ceil(UNITS / mma::LANES * rows) >= CUBES;
            plan.rows = [mma::MOST_ROWS, 2].into_iter().find(many).unwrap_or(1);
        } else {
            let vectors: usize = weights
                .map(|it| plan.vectors(elements(it) * in_element))
                .sum();
            plan.rows = if batch > FEW { 4 } else { 2 };
            plan.lanes = vectors
                .div_ceil(READS)
                .next_power_of_two()
                .clamp(PLANE, UNITS);
        }
        Some(plan)
    }

    /// The plan of a fan-out.
    pub(super) fn normalising(self) -> Self {
        Self {
            normalises: self.batch <= FEW,
            ..self
        }
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

    /// Vectors of an input for one of a weight.
    pub(super) fn pieces(self) -> usize {
        self.together / self.input
    }

    /// Whether the units' blocks of turns are all of a row and no more.
    pub(super) fn even(self, d_in: usize) -> bool {
        self.vectors(d_in).is_multiple_of(self.lanes * self.block())
    }

    /// How many of these it reads before it computes with the first.
    pub(super) fn block(self) -> usize {
        match self.tensor_cores {
            true => mma::block(self),
            false => HELD / self.rows,
        }
    }

    /// Rows that a cube works on.
    pub(super) fn cube_rows(self) -> usize {
        UNITS / self.lanes * self.rows
    }

    /// Outputs of a cube: its rows, for every vector.
    pub(super) fn outputs(self) -> usize {
        self.cube_rows() * self.batch
    }

    /// Sums of a unit.
    pub(super) fn sums(self) -> usize {
        let of_a_row = if self.tensor_cores {
            mma::SUMS
        } else {
            self.batch
        };
        self.rows * of_a_row
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
        self.outputs() * self.shares()
    }

    /// What a unit of a cube's last reduction adds up.
    pub(super) fn shares(self) -> usize {
        match (self.tensor_cores, self.planes) {
            (true, _) => UNITS / PLANE,
            (false, true) => self.lanes / PLANE,
            (false, false) => 1,
        }
    }
}

/// Whether all weights are of one dtype, packed or not.
pub(super) fn alike<'a, R: CubeRuntime>(mut weights: impl Iterator<Item = &'a Weight<R>>) -> bool {
    let kind = |it: &Weight<R>| (it.values.dtype, it.scales.is_some());
    let first = weights.next().map(kind);
    weights.all(|it| Some(kind(it)) == first)
}
