//! A block of rows of an attention matrix: the columns that its rows see, and their softmax.

use std::ops::Range;

use burn_flex::Flex;

use crate::dense::attention::{Visible, Window};
use crate::flex::math::{exp, max, sum, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::starts;

/// Queries in a block.
const BLOCK: usize = 64;

/// `l` queries in blocks.
pub(super) fn blocks(l: usize) -> impl Iterator<Item = Range<usize>> {
    let block = move |start: usize| start..(start + BLOCK).min(l);
    (0..l).step_by(BLOCK).map(block)
}

/// Queries and keys, as they lie in memory, and which keys a query sees.
pub(crate) struct Scores<'a> {
    /// `[b, l, h, p]`
    q: &'a [f32],
    /// `[b, t, g, p]`
    k: &'a [f32],
    /// Queries, keys, heads, groups, head dimension.
    sizes: [usize; 5],
    window: Option<Window>,
    /// The first token of each query's document, `[b, l]`; `None` without documents. With documents there are as many
    /// queries as keys.
    starts: Option<Vec<usize>>,
}

/// The columns of a block of rows that are computed: the sinks, and the columns up to that of the last row. They lie side
/// by side in a row of the block. No row sees a column that is in neither range.
pub(crate) struct Columns {
    sinks: Range<usize>,
    recent: Range<usize>,
}

impl Columns {
    /// The first `seen` columns.
    pub(crate) fn first(seen: usize) -> Self {
        Self {
            sinks: 0..0,
            recent: 0..seen,
        }
    }

    /// How many there are.
    pub(super) fn width(&self) -> usize {
        self.sinks.len() + self.recent.len()
    }

    /// The ranges that are not empty, each with the place of its first column in a row.
    pub(super) fn spans(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let spans = [
            (self.sinks.clone(), 0),
            (self.recent.clone(), self.sinks.len()),
        ];
        spans.into_iter().filter(|(columns, _)| !columns.is_empty())
    }

    /// Where columns that a row sees, all of one range, lie in the row.
    fn places(&self, columns: Range<usize>) -> Range<usize> {
        if columns.is_empty() {
            return 0..0;
        }
        let start = if columns.start < self.sinks.end {
            columns.start - self.sinks.start
        } else {
            self.sinks.len() + columns.start - self.recent.start
        };
        start..start + columns.len()
    }
}

impl<'a> Scores<'a> {
    /// Those of `q [b, l, h, p]` and `k [b, t, g, p]`; `sizes` are `[l, t, h, g, p]`.
    pub(crate) fn new(
        q: &'a [f32],
        k: &'a [f32],
        sizes: [usize; 5],
        visible: Visible<Flex>,
    ) -> Self {
        Self {
            q,
            k,
            sizes,
            window: visible.window,
            starts: starts(visible.documents),
        }
    }

    /// The place of a query among the keys.
    fn key_of(&self, query: usize) -> usize {
        let [l, t, ..] = self.sizes;
        t - l + query
    }

    /// The first key of a query's document.
    fn start_of(&self, batch: usize, query: usize) -> usize {
        let starts = self.starts.as_ref();
        starts.map_or(0, |starts| starts[batch * self.sizes[0] + query])
    }

    /// The sinks that a query sees, and the keys up to its own.
    fn visible(&self, batch: usize, query: usize) -> [Range<usize>; 2] {
        let (start, end) = (self.start_of(batch, query), self.key_of(query) + 1);
        let Some(Window { window, sinks }) = self.window else {
            return [start..start, start..end];
        };
        let first = end.saturating_sub(window).max(start);
        [start..start.saturating_add(sinks).min(first), first..end]
    }

    /// The columns that the queries `rows` see. If the queries are of several documents, these are all columns from the
    /// start of the first document on: the sinks of the other documents lie among them.
    pub(super) fn columns(&self, batch: usize, rows: &Range<usize>) -> Columns {
        let end = self.key_of(rows.end);
        let [sinks, recent] = self.visible(batch, rows.start);
        let one_document = sinks.start == self.start_of(batch, rows.end - 1);
        if one_document && sinks.end < recent.start {
            let recent = recent.start..end;
            return Columns { sinks, recent };
        }
        let first = sinks.start;
        Columns {
            sinks: first..first,
            recent: first..end,
        }
    }

    /// The queries of a head, from `start` on.
    pub(super) fn queries(&self, batch: usize, head: usize, start: usize) -> Matrix<'a> {
        let [l, _, h, _, p] = self.sizes;
        head_rows(self.q, [l, h, p], batch, head, start)
    }

    /// The keys of a group, from `start` on.
    pub(super) fn keys(&self, batch: usize, group: usize, start: usize) -> Matrix<'a> {
        let [_, t, _, g, p] = self.sizes;
        head_rows(self.k, [t, g, p], batch, group, start)
    }

    /// The softmax of the queries `rows` of one head over `columns`, into the first places of rows of `out` that are
    /// `out_row` apart. A column that a row does not see is 0 there.
    pub(crate) fn softmax_rows(
        &self,
        batch: usize,
        head: usize,
        rows: Range<usize>,
        columns: &Columns,
        out: &mut [f32],
        out_row: usize,
    ) {
        let [_, _, h, g, p] = self.sizes;
        let q = self.queries(batch, head, rows.start);
        for (span, place) in columns.spans() {
            let k = self.keys(batch, head / (h / g), span.start);
            let (sizes, out) = ([rows.len(), span.len(), p], &mut out[place..]);
            multiply(sizes, out, out_row, 0.0, q, k.transposed(), false);
        }
        let scale = 1.0 / (p as f32).sqrt();
        vectorised(
            #[inline(always)]
            || {
                for (row, query) in out.chunks_mut(out_row).zip(rows) {
                    let row = &mut row[..columns.width()];
                    let visible = self.visible(batch, query);
                    let [sinks, recent] = visible.map(|range| columns.places(range));
                    let largest = max(&row[sinks.clone()]).max(max(&row[recent.clone()]));
                    let mut total = 0.0;
                    for range in [sinks.clone(), recent.clone()] {
                        let scores = &mut row[range];
                        for score in scores.iter_mut() {
                            *score = exp(scale * (*score - largest));
                        }
                        total += sum(scores, |x| x);
                    }
                    let inverse = 1.0 / total;
                    for range in [sinks.clone(), recent.clone()] {
                        for weight in &mut row[range] {
                            *weight *= inverse;
                        }
                    }
                    row[..sinks.start].fill(0.0);
                    row[sinks.end..recent.start].fill(0.0);
                    row[recent.end..].fill(0.0);
                }
            },
        );
    }
}

/// The rows of a head in `x [b, l, h, p]` from `start` on.
pub(super) fn head_rows(
    x: &[f32],
    [l, h, p]: [usize; 3],
    batch: usize,
    head: usize,
    start: usize,
) -> Matrix<'_> {
    Matrix {
        values: &x[((batch * l + start) * h + head) * p..],
        row: h * p,
        column: 1,
    }
}
