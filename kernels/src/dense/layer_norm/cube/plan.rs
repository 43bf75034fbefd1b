//! How rows are laid over the units of a cube.

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Units of a row whose sums all others of the row read.
pub(super) const GROUP: usize = 16;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
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
