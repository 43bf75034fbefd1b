//! How the units of a cube share the state of a head.

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Sums that a cube has room for: 12 KiB.
pub(super) const PARTIALS: usize = 3072;

/// How a cube's units share a head's `[p, n]`: neighbours along n, `lanes` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) p: usize,
    pub(super) n: usize,
    /// Elements along n that are read together.
    pub(super) vector: usize,
    pub(super) lanes: usize,
    /// Pairs along n that are turned, a multiple of both: a unit has both numbers of each pair, or none.
    pairs: usize,
}

impl Layout {
    /// For states that can be read so many elements of n at a time.
    pub(super) fn new(p: usize, n: usize, vector: usize, pairs: usize) -> Self {
        let vector = if pairs.is_multiple_of(vector) {
            vector
        } else {
            1
        };
        let vectors = n / vector;
        let fits = |lanes: &usize| {
            let in_memory = p * (lanes + 1) <= PARTIALS;
            *lanes <= vectors && in_memory && (pairs / vector).is_multiple_of(*lanes)
        };
        let lanes = (0..=UNITS.ilog2()).rev().map(|log| 1 << log).find(fits);
        Self {
            p,
            n,
            vector,
            lanes: lanes.unwrap_or(1),
            pairs,
        }
    }

    /// Rows of the state that are read together.
    pub(super) fn rows(self) -> usize {
        UNITS / self.lanes
    }

    /// Vectors of a unit along n.
    pub(super) fn across(self) -> usize {
        (self.n / self.vector).div_ceil(self.lanes)
    }

    /// Of these, the vectors of first numbers of pairs.
    pub(super) fn turned(self) -> usize {
        self.pairs / self.vector / self.lanes
    }

    /// Vectors of a unit along p.
    pub(super) fn down(self) -> usize {
        self.p.div_ceil(self.rows())
    }
}
