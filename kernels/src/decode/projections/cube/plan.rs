//! How the work of a launch is shared out.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use cubecl::features::Plane;

use super::digits::CHUNK;
use super::operands::Weight;
use super::{integers, mma};
use crate::cube::fragments::PLANE;
use crate::decode::projections::{Activation, Form, GROUP};

/// Units of a cube without tensor cores.
const UNITS: usize = 256;
/// Vectors of a row that a unit reads without tensor cores, where there are units enough.
const READS: usize = 8;
/// Vectors of weights that a unit has under way at a time, without tensor cores.
const HELD: usize = 16;
/// The largest number of vectors that every cube normalises for itself while its weights are loaded; a unit then works
/// on two rows of a weight. For more vectors, the normalisation would take longer than the loads. They are normalised
/// in a separate launch before, and a unit works on four rows; with tensor cores, more loads of weights are under way.
const FEW: usize = 2;
/// Bytes that a unit reads of a weight at a time, for tensor cores.
const VECTOR: usize = 16;
/// Such vectors of a row that a plane multiplies in a step: 128 bytes, of which memory has a line.
pub(super) const STEP: usize = 8;
/// Steps of a plane that are on their way, or being multiplied, at least.
const FEWEST_STAGES: usize = 2;
/// Vectors of a launch, at most.
pub(super) const BATCH: usize = 8;
/// Cubes that share rows, where they make the digits of more than [`ALONE`] vectors.
const GROUP_CUBES: usize = 4;
/// The largest number of vectors of which every cube makes all digits: for more, that takes longer than the weights.
const ALONE: usize = 4;

/// The compile-time parameters of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) d_out: usize,
    pub(super) d_in: usize,
    /// The first of its cubes.
    pub(super) first_cube: usize,
    /// How many it has, which take turns with its rows.
    pub(super) cubes: usize,
    /// The index of its bias among the biases of the launch.
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
    /// What weights are stored as: floats, or several numbers in an element.
    pub(super) form: Form,
    /// Whether the units of a plane can add up what they have.
    pub(super) planes: bool,
    /// Whether every cube normalises the vectors for itself, into shared memory.
    pub(super) normalises: bool,
    /// Whether the mean is taken off, as by a layer normalisation and not by a root-mean-square one.
    pub(super) centred: bool,
    /// Whether inputs are products of two vectors.
    pub(super) gated: bool,
    /// Cubes of a group, which share rows: each multiplies a part of every row, for as many times the rows, and so makes the
    /// digits of this part of the vectors alone. The last that is done adds up what they have.
    pub(super) cubes_of_group: usize,
    /// With tensor cores, steps of a plane that are on their way, or being multiplied.
    pub(super) stages: usize,
    /// Whether the products use tensor cores. This depends on the weights and the device, but not on the number of
    /// vectors, so that the bits of a row do not depend on the other rows.
    pub(super) tensor_cores: bool,
    /// Cubes of a launch that are at work at a time, one a multiprocessor; with tensor cores alone.
    pub(super) at_work: usize,
}

impl Plan {
    /// For `d_out` rows that lie in one or several weights, and vectors that may have to be normalised. `None` if there
    /// is no kernel for these.
    pub(super) fn new<'a, R: CubeRuntime>(
        batch: usize,
        d_out: usize,
        weights: impl Iterator<Item = &'a Weight<R>> + Clone,
        normalises: bool,
    ) -> Option<Self> {
        let first = weights.clone().next()?;
        let (form, first) = (first.form(), &first.values);
        let empty = |weight: &Weight<R>| weight.values.meta.num_elements() == 0;
        if !alike(weights.clone()) || batch == 0 || weights.clone().any(empty) {
            return None;
        }
        let in_element = form.in_element();
        let elements = |weight: &Weight<R>| weight.values.meta.shape()[1];
        let sizes = first.client.io_optimized_vector_sizes(first.dtype.size());
        // A vector of numbers in 4 bits has one scale.
        let most = match form {
            Form::Int4 => GROUP / in_element,
            Form::Float | Form::Int8 => usize::MAX,
        };
        let fits = |size: &usize| {
            let mut weights = weights.clone();
            *size <= most && weights.all(|weight| elements(weight).is_multiple_of(*size))
        };
        let together = in_element * sizes.filter(fits).max()?;
        let properties = first.client.properties();
        let hardware = &properties.hardware;
        let planes = properties.features.plane.contains(Plane::Ops)
            && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2];
        let mut plan = Self {
            batch,
            rows: if batch > FEW { 4 } else { 2 },
            lanes: PLANE,
            together,
            input: together.min(4),
            form,
            planes,
            normalises: normalises && batch <= FEW,
            centred: false,
            gated: false,
            cubes_of_group: 1,
            stages: 0,
            tensor_cores: false,
            at_work: 0,
        };
        // Whether planes can share every row, in whole steps, so many units a row. Of packed weights some planes may
        // have a step less.
        let whole = |lanes: usize| {
            let shares = match form {
                Form::Float => lanes / mma::SHARERS,
                Form::Int8 | Form::Int4 => 1,
            };
            let step = together * STEP * shares;
            let fits = |weight: &Weight<R>| (elements(weight) * in_element).is_multiple_of(step);
            weights.clone().all(fits)
        };
        let on_tensor_cores = Self {
            rows: mma::TILES,
            lanes: mma::FEWEST_LANES,
            normalises,
            stages: FEWEST_STAGES,
            tensor_cores: true,
            at_work: hardware.num_streaming_multiprocessors.unwrap_or(1) as usize,
            ..plan
        };
        let d = if normalises {
            first.meta.shape()[1] * in_element
        } else {
            0
        };
        let fits = |plan: Self| plan.shared(d) <= hardware.max_shared_memory_size;
        let (multiplies, config) = match form {
            Form::Float => (
                matches!(first.dtype, DType::F32 | DType::F16 | DType::BF16),
                mma::config(),
            ),
            Form::Int8 | Form::Int4 => (true, integers::config()),
        };
        let tensor_cores = planes
            && multiplies
            && together / in_element * first.dtype.size() == VECTOR
            && whole(mma::FEWEST_LANES)
            && properties.features.copy_async
            && properties.features.matmul.mma.contains(&config)
            && hardware.max_units_per_cube as usize >= mma::UNITS
            && fits(Self {
                batch: BATCH,
                ..on_tensor_cores
            });
        if tensor_cores {
            plan = on_tensor_cores;
            // As many planes share a row as it takes to have a cube for every multiprocessor.
            let most = mma::UNITS / mma::ROWS;
            let lanes = (0..).map(|i| mma::FEWEST_LANES << i);
            for lanes in lanes.take_while(|lanes| *lanes <= most && whole(*lanes)) {
                plan.lanes = lanes;
                if d_out.div_ceil(plan.cube_rows()) >= plan.at_work {
                    break;
                }
            }
            // Where fewer planes share a row, a cube would have more outputs than units.
            let all_planes = plan.shares() == mma::UNITS / PLANE;
            if plan.makes_digits() && batch > ALONE && all_planes {
                plan.cubes_of_group = GROUP_CUBES;
            }
            // Shared memory has room for more where few or no inputs are copied beside them.
            let copies_little = plan.cubes_of_group > 1 || (normalises && batch > FEW);
            let most = if copies_little { 4 } else { 3 };
            let stages = (FEWEST_STAGES..=most).rev();
            let mut plans = stages.map(|stages| Self { stages, ..plan });
            plan = plans.find(|plan| fits(*plan)).unwrap_or(plan);
        } else {
            let vectors: usize = weights
                .map(|weight| plan.vectors(elements(weight) * in_element))
                .sum();
            plan.lanes = vectors
                .div_ceil(READS)
                .next_power_of_two()
                .clamp(PLANE, UNITS);
        }
        Some(plan)
    }

    /// Units of a cube.
    pub(super) fn units(self) -> usize {
        if self.tensor_cores { mma::UNITS } else { UNITS }
    }

    /// Elements of a weight that are read together.
    pub(super) fn elements(self) -> usize {
        self.together / self.form.in_element()
    }

    /// Vectors of a row that share a scale, in 4 bits.
    pub(super) fn of_group(self) -> usize {
        GROUP / self.together
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

    /// How many of these it reads before it computes with the first. For more than a few vectors one, whose products are
    /// then a loop: unrolled, they are so many instructions that CubeCL's optimiser takes long.
    pub(super) fn block(self) -> usize {
        if self.batch > FEW {
            1
        } else {
            HELD / self.rows
        }
    }

    /// Rows that a cube works on at a time.
    pub(super) fn cube_rows(self) -> usize {
        self.units() / self.lanes * self.rows * self.cubes_of_group
    }

    /// The cubes of each of some weights with so many rows. With tensor cores no more than are at work at a time,
    /// if they can be so few: that is the fewest turns of each.
    pub(super) fn cubes(self, rows: &[usize]) -> Vec<usize> {
        let tasks = rows.iter().map(|rows| rows.div_ceil(self.cube_rows()));
        let tasks: Vec<_> = tasks.collect();
        let in_turns = |turns: usize| tasks.iter().map(move |tasks| tasks.div_ceil(turns));
        let most = tasks.iter().copied().max().unwrap_or(1);
        let fit = |turns: &usize| in_turns(*turns).sum::<usize>() <= self.at_work;
        let turns = if self.tensor_cores {
            (1..most).find(fit).unwrap_or(most)
        } else {
            1
        };
        in_turns(turns).collect()
    }

    /// Steps of a row that one plane takes at most, with tensor cores.
    pub(super) fn steps(self, d_in: usize) -> usize {
        self.all_steps(d_in).div_ceil(self.shares())
    }

    /// Steps of a row, with tensor cores.
    pub(super) fn all_steps(self, d_in: usize) -> usize {
        self.vectors(d_in) / STEP
    }

    /// Vectors of an input that a step takes.
    pub(super) fn step_width(self) -> usize {
        STEP * self.pieces()
    }

    /// Whether the weights are multiplied as whole numbers, with the digits of the vectors.
    pub(super) fn integers(self) -> bool {
        self.tensor_cores && self.form != Form::Float
    }

    /// Left factors that have the digits of all vectors.
    pub(super) fn sets(self) -> usize {
        self.batch.div_ceil(integers::TOGETHER)
    }

    /// Units of a plane that have sums of the same vector.
    pub(super) fn units_of_vector(self) -> usize {
        if self.integers() {
            2 * mma::SHARERS / self.sets()
        } else {
            mma::SHARERS
        }
    }

    /// Chunks of digits that a step takes.
    pub(super) fn chunks(self) -> usize {
        STEP * self.together / CHUNK
    }

    /// Units of a vector's digits, a chunk each.
    pub(super) fn units_of(self, d_in: usize) -> usize {
        if self.integers() { d_in / CHUNK } else { 0 }
    }

    /// Planes that make the same digits together.
    pub(super) fn planes_of_maker(self) -> usize {
        self.units() / PLANE / self.makers()
    }

    /// Whether a cube makes the digits of vectors that come as they are.
    fn makes_digits(self) -> bool {
        self.integers() && !self.normalises
    }

    /// Vectors of digits that a cube has at a time, where vectors come as they are.
    pub(super) fn digits_of_cube(self) -> usize {
        if self.makes_digits() {
            self.makers() * self.batch * self.step_width()
        } else {
            0
        }
    }

    /// The units of these digits.
    pub(super) fn digit_units_of_cube(self) -> usize {
        if self.makes_digits() {
            self.makers() * self.batch * self.chunks()
        } else {
            0
        }
    }

    /// Planes of a cube that make digits of their own. With cubes in groups these are the planes of one run of rows; those of
    /// the others multiply with the same digits.
    pub(super) fn makers(self) -> usize {
        if self.cubes_of_group > 1 {
            self.shares_of_cube()
        } else {
            self.units() / PLANE
        }
    }

    /// Digits of a weight's number: tensor cores take 11 bits, which is all that 16 bits have.
    pub(super) fn digits(self) -> usize {
        if self.form == Form::Float && self.together <= 4 {
            2
        } else {
            1
        }
    }

    /// Outputs of a cube: its rows, for every vector.
    pub(super) fn outputs(self) -> usize {
        self.cube_rows() * self.batch
    }

    /// Sums of a unit.
    pub(super) fn sums(self) -> usize {
        let of_a_row = if self.integers() {
            2 * self.sets()
        } else if self.tensor_cores {
            mma::chains(self) * mma::SUMS
        } else {
            self.batch
        };
        self.rows * of_a_row
    }

    /// Vectors of an input from one normalised row to the next. With tensor cores neighbouring rows begin in
    /// different halves of the banks, as do those of digits by their order.
    pub(super) fn stride(self, d_in: usize) -> usize {
        let apart = self.tensor_cores && !self.integers();
        d_in / self.input + if apart { 4 } else { 0 }
    }

    /// Bytes of shared memory that a cube needs for vectors of `d_in` numbers, to multiply or only to normalise them.
    pub(super) fn shared(self, d_in: usize) -> usize {
        let vectors = if self.normalises { self.batch } else { 1 };
        let normed = 4 * vectors * (self.input * self.stride(d_in) + self.units_of(d_in));
        let digits = 4 * (self.input * self.digits_of_cube() + self.digit_units_of_cube());
        let ring = if self.tensor_cores {
            let x = if self.normalises || self.integers() {
                0
            } else {
                self.batch * self.step_width() * 4 * self.input
            };
            let scales = if self.form == Form::Int4 { 2 * STEP } else { 0 };
            let weights = mma::TILES * mma::ROWS * (STEP * VECTOR + scales);
            // Beside what it holds, its barriers, and what keeps it to whole lines.
            mma::UNITS / PLANE * self.stages * (weights + x) + 1024
        } else {
            0
        };
        let planes = self.units() / PLANE * self.batch;
        normed + digits + ring + 4 * (self.all_partials() + planes + self.totals())
    }

    /// Sums of a unit that are reduced at a time, where planes do not help.
    pub(super) fn partials(self) -> usize {
        if self.planes { 1 } else { self.sums().min(4) }
    }

    /// All of these that a cube has.
    pub(super) fn all_partials(self) -> usize {
        if self.planes {
            1
        } else {
            UNITS * self.partials()
        }
    }

    /// Numbers that a cube's outputs are the sums of.
    pub(super) fn totals(self) -> usize {
        self.outputs() * self.shares_of_cube()
    }

    /// What a unit of a cube's last reduction adds up.
    pub(super) fn shares_of_cube(self) -> usize {
        self.shares() / self.cubes_of_group
    }

    /// Sums of shares that are added up by themselves first: whether one cube has them all, or several have one each,
    /// an output is the same sum.
    pub(super) fn runs(self) -> usize {
        if self.tensor_cores { GROUP_CUBES } else { 1 }
    }

    /// Parts of a row that planes, or units, sum up.
    pub(super) fn shares(self) -> usize {
        match (self.tensor_cores, self.planes) {
            (true, _) => self.lanes / mma::SHARERS,
            (false, true) => self.lanes / PLANE,
            (false, false) => 1,
        }
    }
}

/// Whether all weights are of one dtype and in one form.
pub(super) fn alike<'a, R: CubeRuntime>(mut weights: impl Iterator<Item = &'a Weight<R>>) -> bool {
    let kind = |weight: &Weight<R>| (weight.values.dtype, weight.form());
    let first = weights.next().map(kind);
    weights.all(|weight| Some(kind(weight)) == first)
}
