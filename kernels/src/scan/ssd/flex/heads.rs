//! The inputs of a scan as slices, and where the rows of each head lie in them.

use burn_flex::Flex;

use crate::flex::Values;
use crate::flex::products::Matrix;
use crate::scan::ssd::ScanInputs;

/// The sizes of a scan, and where a head's rows lie in its inputs.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) p: usize,
    pub(super) g: usize,
    pub(super) n: usize,
    pub(super) chunk: usize,
}

/// The inputs of a scan, each in one piece.
pub(super) struct ScanValues {
    pub(super) batch: usize,
    sizes: Sizes,
    x: Values,
    a_log: Values,
    b: Values,
    c: Values,
    initial_state: Option<Values>,
}

impl ScanValues {
    pub(super) fn of(scan: ScanInputs<Flex>, chunk: usize) -> Self {
        let [batch, l, h, p] = scan.x.dims();
        let [_, _, g, n] = scan.b.dims();
        Self {
            batch,
            sizes: Sizes {
                l,
                h,
                p,
                g,
                n,
                chunk,
            },
            x: Values::of(scan.x),
            a_log: Values::of(scan.a_log),
            b: Values::of(scan.b),
            c: Values::of(scan.c),
            initial_state: scan.initial_state.map(Values::of),
        }
    }

    pub(super) fn slices(&self) -> Slices<'_> {
        Slices {
            sizes: self.sizes,
            x: &self.x,
            a_log: &self.a_log,
            b: &self.b,
            c: &self.c,
            initial_state: self.initial_state.as_deref(),
        }
    }
}

pub(super) struct Slices<'a> {
    pub(super) sizes: Sizes,
    pub(super) x: &'a [f32],
    a_log: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) c: &'a [f32],
    initial_state: Option<&'a [f32]>,
}

/// One batch and head of the inputs.
pub(super) struct Head<'a> {
    pub(super) inputs: &'a Slices<'a>,
    pub(super) batch: usize,
    pub(super) head: usize,
}

impl<'a> Head<'a> {
    fn token(&self, t: usize) -> usize {
        self.batch * self.inputs.sizes.l + t
    }

    /// Rows of a `[b, l, h, p]` tensor from token `t` on.
    pub(super) fn rows_hp(&self, values: &'a [f32], t: usize) -> Matrix<'a> {
        let Sizes { h, p, .. } = self.inputs.sizes;
        let row = h * p;
        Matrix {
            values: &values[self.token(t) * row + self.head * p..],
            row,
            column: 1,
        }
    }

    /// Rows of a `[b, l, g, n]` tensor from token `t` on.
    pub(super) fn rows_gn(&self, values: &'a [f32], t: usize) -> Matrix<'a> {
        let Sizes { h, g, n, .. } = self.inputs.sizes;
        let (row, group) = (g * n, self.head / (h / g));
        Matrix {
            values: &values[self.token(t) * row + group * n..],
            row,
            column: 1,
        }
    }

    pub(super) fn a_log(&self, t: usize) -> f32 {
        self.inputs.a_log[self.token(t) * self.inputs.sizes.h + self.head]
    }

    /// `[p, n]`
    pub(super) fn initial_state(&self) -> Vec<f32> {
        let Sizes { h, p, n, .. } = self.inputs.sizes;
        match self.inputs.initial_state {
            Some(state) => state[(self.batch * h + self.head) * p * n..][..p * n].to_vec(),
            None => vec![0.0; p * n],
        }
    }
}
