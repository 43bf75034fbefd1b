//! On slices: one task a batch and group of heads, one chunk after the other, each step of the scan
//! a small matrix product on strided rows, so that nothing but the results is copied.
//!
//! The decays inside a chunk come from products along its rows, without a logarithm or an
//! exponential: exact for any decay, and cheaper.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{ScanInputs, SsdGradients, SsdScan, reference};
use crate::flex::math::{dot, flushed, sigmoid, sum, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, is_f32, tensor};

impl SsdScan for Flex {
    fn ssd_scan_forward(
        scan: ScanInputs<Self>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        if fits(&scan) {
            forward(scan, chunk)
        } else {
            reference::forward(scan, chunk)
        }
    }

    fn ssd_scan_backward(
        scan: ScanInputs<Self>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        if fits(&scan) && is_f32(&dy) {
            backward(scan, dy, chunk)
        } else {
            reference::backward(scan, dy, chunk)
        }
    }
}

fn fits(scan: &ScanInputs<Flex>) -> bool {
    is_f32(&scan.x)
        && is_f32(&scan.a_log)
        && is_f32(&scan.b)
        && is_f32(&scan.c)
        && scan.initial_state.iter().all(is_f32)
}

/// The sizes of a scan, and where a head's rows lie in its inputs.
#[derive(Clone, Copy)]
struct Sizes {
    l: usize,
    h: usize,
    p: usize,
    g: usize,
    n: usize,
    chunk: usize,
}

struct Slices<'a> {
    sizes: Sizes,
    x: &'a [f32],
    a_log: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    initial_state: Option<&'a [f32]>,
}

/// One batch and head of the inputs.
struct Head<'a> {
    inputs: &'a Slices<'a>,
    batch: usize,
    head: usize,
}

impl<'a> Head<'a> {
    fn token(&self, t: usize) -> usize {
        self.batch * self.inputs.sizes.l + t
    }

    /// Rows of a `[b, l, h, p]` tensor from token `t` on.
    fn rows_hp(&self, values: &'a [f32], t: usize) -> Matrix<'a> {
        let Sizes { h, p, .. } = self.inputs.sizes;
        let row = h * p;
        Matrix {
            values: &values[self.token(t) * row + self.head * p..],
            row,
            column: 1,
        }
    }

    /// Rows of a `[b, l, g, n]` tensor from token `t` on.
    fn rows_gn(&self, values: &'a [f32], t: usize) -> Matrix<'a> {
        let Sizes { h, g, n, .. } = self.inputs.sizes;
        let (row, group) = (g * n, self.head / (h / g));
        Matrix {
            values: &values[self.token(t) * row + group * n..],
            row,
            column: 1,
        }
    }

    fn a_log(&self, t: usize) -> f32 {
        self.inputs.a_log[self.token(t) * self.inputs.sizes.h + self.head]
    }

    /// `[p, n]`
    fn initial_state(&self) -> Vec<f32> {
        let Sizes { h, p, n, .. } = self.inputs.sizes;
        match self.inputs.initial_state {
            Some(state) => state[(self.batch * h + self.head) * p * n..][..p * n].to_vec(),
            None => vec![0.0; p * n],
        }
    }
}

/// The decays of one chunk, of `q` tokens.
struct Decays {
    q: usize,
    /// `L[l, s]`, the product of the decays in `(s, l]`, 0 above the diagonal: `[q, q]`.
    inside: Vec<f32>,
    /// The product of the decays from the chunk's start through `l`: `[q]`.
    into: Vec<f32>,
}

impl Decays {
    fn of(head: &Head, start: usize, q: usize) -> Self {
        let mut inside = vec![0.0; q * q];
        let mut into = vec![1.0; q];
        vectorised(
            #[inline(always)]
            || {
                for l in 0..q {
                    let a = sigmoid(-head.a_log(start + l));
                    into[l] = flushed(a * if l > 0 { into[l - 1] } else { 1.0 });
                    let (above, row) = inside.split_at_mut(l * q);
                    if l > 0 {
                        for (value, previous) in row[..l].iter_mut().zip(&above[(l - 1) * q..]) {
                            *value = flushed(a * previous);
                        }
                    }
                    row[l] = 1.0;
                }
            },
        );
        Self { q, inside, into }
    }

    /// The decay of the whole chunk.
    fn whole(&self) -> f32 {
        self.into[self.q - 1]
    }

    /// The product of the decays after each token to the chunk's end: `[q]`.
    fn out(&self) -> &[f32] {
        &self.inside[(self.q - 1) * self.q..]
    }
}

/// `row[i] *= factors[i]` for each row of `width`.
fn scale_rows(rows: &mut [f32], factors: &[f32], width: usize) {
    vectorised(
        #[inline(always)]
        || {
            for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
                for value in row {
                    *value *= factor;
                }
            }
        },
    );
}

/// `q` rows of a strided matrix, each times its factor, as contiguous rows of `width`.
fn scaled_copy(from: Matrix, factors: &[f32], width: usize) -> Vec<f32> {
    let rows = factors.iter().enumerate();
    rows.flat_map(|(r, &f)| {
        from.values[r * from.row..][..width]
            .iter()
            .map(move |x| x * f)
    })
    .collect()
}

/// The dot product of each row of `left` (contiguous, `width` wide) with that of `right`.
fn row_dots(left: &[f32], right: Matrix, width: usize) -> Vec<f32> {
    let rows = left.chunks_exact(width).enumerate();
    rows.map(|(r, left)| {
        let right = &right.values[r * right.row..][..width];
        vectorised(
            #[inline(always)]
            || dot(left, right),
        )
    })
    .collect()
}

fn multiply_elements(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x *= y;
            }
        },
    );
}

fn add_elements(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        },
    );
}

/// The start and length of each chunk.
fn chunks(
    l: usize,
    chunk: usize,
) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator {
    (0..l.div_ceil(chunk)).map(move |k| (k * chunk, chunk.min(l - k * chunk)))
}

/// Steps 2 and 3: `state [p, n]` through one chunk.
fn advance(head: &Head, start: usize, decays: &Decays, state: &mut [f32]) {
    let Sizes { p, n, .. } = head.inputs.sizes;
    let x_out = scaled_copy(head.rows_hp(head.inputs.x, start), decays.out(), p);
    let b = head.rows_gn(head.inputs.b, start);
    let x_out = Matrix::rows(&x_out, p).transposed();
    multiply([p, n, decays.q], state, n, decays.whole(), x_out, b, false);
}

/// `y [l, p]` and the last state `[p, n]` of one head.
fn forward_head(head: &Head) -> (Vec<f32>, Vec<f32>) {
    let Sizes { l, p, n, chunk, .. } = head.inputs.sizes;
    let mut y = vec![0.0; l * p];
    let mut state = head.initial_state();
    for (start, q) in chunks(l, chunk) {
        let decays = Decays::of(head, start, q);
        let (x, b, c) = (
            head.rows_hp(head.inputs.x, start),
            head.rows_gn(head.inputs.b, start),
            head.rows_gn(head.inputs.c, start),
        );
        let y = &mut y[start * p..][..q * p];
        // 4. What the entering state gives each output.
        let state_np = Matrix::rows(&state, n).transposed();
        multiply([q, p, n], y, p, 0.0, c, state_np, false);
        scale_rows(y, &decays.into, p);
        // 1. Inside the chunk.
        let mut scores = vec![0.0; q * q];
        multiply([q, q, n], &mut scores, q, 0.0, c, b.transposed(), false);
        multiply_elements(&mut scores, &decays.inside);
        multiply([q, p, q], y, p, 1.0, Matrix::rows(&scores, q), x, false);
        // 2. and 3.
        advance(head, start, &decays, &mut state);
    }
    (y, state)
}

fn forward(scan: ScanInputs<Flex>, chunk: usize) -> (Tensor<Flex, 4>, Tensor<Flex, 4>) {
    let ScanInputs {
        x,
        a_log,
        b,
        c,
        initial_state,
    } = scan;
    let [batch, l, h, p] = x.dims();
    let [_, _, g, n] = b.dims();
    let (x, a_log, b, c) = (
        Values::of(x),
        Values::of(a_log),
        Values::of(b),
        Values::of(c),
    );
    let initial_state = initial_state.map(Values::of);
    let inputs = Slices {
        sizes: Sizes {
            l,
            h,
            p,
            g,
            n,
            chunk,
        },
        x: &x,
        a_log: &a_log,
        b: &b,
        c: &c,
        initial_state: initial_state.as_deref(),
    };
    let heads: Vec<(Vec<f32>, Vec<f32>)> = (0..batch * h)
        .into_par_iter()
        .map(|i| {
            forward_head(&Head {
                inputs: &inputs,
                batch: i / h,
                head: i % h,
            })
        })
        .collect();
    let ys: Vec<&[f32]> = heads.iter().map(|(y, _)| &y[..]).collect();
    let states = heads.iter().flat_map(|(_, state)| state).copied().collect();
    (
        tensor(interleave(&ys, batch, l, p), [batch, l, h, p]),
        tensor(states, [batch, h, p, n]),
    )
}

/// Gradients of one group's heads; those to B and C are summed over them.
struct GroupGradients {
    /// `[l, p]` a head.
    x: Vec<Vec<f32>>,
    /// `[l]` a head.
    a_log: Vec<Vec<f32>>,
    /// `[l, n]`
    b: Vec<f32>,
    /// `[l, n]`
    c: Vec<f32>,
    /// `[p, n]` a head.
    initial_state: Vec<Vec<f32>>,
}

/// Adds one head's gradients to its group's.
fn backward_head(head: &Head, dy: &[f32], group: &mut GroupGradients) {
    let Sizes { l, p, n, chunk, .. } = head.inputs.sizes;
    let decays: Vec<Decays> = chunks(l, chunk)
        .map(|(start, q)| Decays::of(head, start, q))
        .collect();
    // The state that enters each chunk, as in the forward pass.
    let mut entering = vec![head.initial_state()];
    for (k, (start, _)) in chunks(l, chunk).enumerate().take(decays.len() - 1) {
        let mut state = entering[k].clone();
        advance(head, start, &decays[k], &mut state);
        entering.push(state);
    }

    let (mut dx, mut da_log) = (vec![0.0; l * p], vec![0.0; l]);
    // The gradient to the state after the chunk; nothing asks for the last one.
    let mut dstate = vec![0.0; p * n];
    for (k, (start, q)) in chunks(l, chunk).enumerate().rev() {
        let (decays, state) = (&decays[k], &entering[k]);
        let x = head.rows_hp(head.inputs.x, start);
        let b = head.rows_gn(head.inputs.b, start);
        let c = head.rows_gn(head.inputs.c, start);
        let dy = head.rows_hp(dy, start);
        let dx = &mut dx[start * p..][..q * p];
        let (group_db, group_dc) = (&mut group.b[start * n..], &mut group.c[start * n..]);

        // 4. backward: to C, to the entering state (below), to the decays into the chunk.
        let dy_into = scaled_copy(dy, &decays.into, p);
        let dy_into = Matrix::rows(&dy_into, p);
        let mut dc = vec![0.0; q * n];
        multiply(
            [q, n, p],
            &mut dc,
            n,
            0.0,
            dy_into,
            Matrix::rows(state, n),
            false,
        );
        let mut dlog_into = row_dots(&dc, c, n);
        dlog_into[q - 1] += decays.whole()
            * vectorised(
                #[inline(always)]
                || dot(&dstate, state),
            );

        // 2. backward: to x and B, and to the decays out of the chunk.
        let mut db = vec![0.0; q * n];
        multiply(
            [q, n, p],
            &mut db,
            n,
            0.0,
            x,
            Matrix::rows(&dstate, n),
            false,
        );
        scale_rows(&mut db, decays.out(), n);
        let dlog_out = row_dots(&db, b, n);
        multiply(
            [q, p, n],
            dx,
            p,
            0.0,
            b,
            Matrix::rows(&dstate, n).transposed(),
            false,
        );
        scale_rows(dx, decays.out(), p);

        // 1. backward: inside the chunk, with M = L o C B^T.
        let mut m = vec![0.0; q * q];
        multiply([q, q, n], &mut m, q, 0.0, c, b.transposed(), false);
        multiply_elements(&mut m, &decays.inside);
        let m_sq = Matrix::rows(&m, q).transposed();
        multiply([q, p, q], dx, p, 1.0, m_sq, dy, false);
        let mut dm = vec![0.0; q * q];
        multiply([q, q, p], &mut dm, q, 0.0, dy, x.transposed(), false);
        let mut dlog_inside = m;
        multiply_elements(&mut dlog_inside, &dm);
        let mut dscores = dm;
        multiply_elements(&mut dscores, &decays.inside);
        let dscores = Matrix::rows(&dscores, q);
        multiply([q, n, q], &mut dc, n, 1.0, dscores, b, false);
        multiply([q, n, q], &mut db, n, 1.0, dscores.transposed(), c, false);
        add_elements(&mut group_db[..q * n], &db);
        add_elements(&mut group_dc[..q * n], &dc);

        // The decay at t is in L[l, s] for s < t <= l, in the decays into l >= t, and in those out
        // of s < t.
        let before: Vec<f32> = dlog_out
            .iter()
            .scan(0.0, |sum, value| Some(std::mem::replace(sum, *sum + value)))
            .collect();
        let mut columns = vec![0.0; q];
        let mut from_here = 0.0;
        for t in (0..q).rev() {
            from_here += dlog_into[t];
            let row = &dlog_inside[t * q..][..t];
            let inside = vectorised(
                #[inline(always)]
                || {
                    for (column, value) in columns.iter_mut().zip(row) {
                        *column += value;
                    }
                    sum(&columns[..t], |x| x)
                },
            );
            let dlog_decay = from_here + inside + before[t];
            da_log[start + t] = -dlog_decay * sigmoid(head.a_log(start + t));
        }

        // 3. backward: to the state that entered.
        multiply(
            [p, n, q],
            &mut dstate,
            n,
            decays.whole(),
            dy_into.transposed(),
            c,
            false,
        );
    }
    group.x.push(dx);
    group.a_log.push(da_log);
    group.initial_state.push(dstate);
}

fn backward(scan: ScanInputs<Flex>, dy: Tensor<Flex, 4>, chunk: usize) -> SsdGradients<Flex> {
    let ScanInputs {
        x,
        a_log,
        b,
        c,
        initial_state,
    } = scan;
    let [batch, l, h, p] = x.dims();
    let [_, _, g, n] = b.dims();
    let (x, a_log, b, c) = (
        Values::of(x),
        Values::of(a_log),
        Values::of(b),
        Values::of(c),
    );
    let (initial_state, dy) = (initial_state.map(Values::of), Values::of(dy));
    let inputs = Slices {
        sizes: Sizes {
            l,
            h,
            p,
            g,
            n,
            chunk,
        },
        x: &x,
        a_log: &a_log,
        b: &b,
        c: &c,
        initial_state: initial_state.as_deref(),
    };
    let groups: Vec<GroupGradients> = (0..batch * g)
        .into_par_iter()
        .map(|i| {
            let mut group = GroupGradients {
                x: vec![],
                a_log: vec![],
                b: vec![0.0; l * n],
                c: vec![0.0; l * n],
                initial_state: vec![],
            };
            for k in 0..h / g {
                let head = Head {
                    inputs: &inputs,
                    batch: i / g,
                    head: i % g * (h / g) + k,
                };
                backward_head(&head, &dy, &mut group);
            }
            group
        })
        .collect();
    let heads = |of: fn(&GroupGradients) -> &Vec<Vec<f32>>| -> Vec<&[f32]> {
        groups
            .iter()
            .flat_map(|group| of(group).iter().map(|v| &v[..]))
            .collect()
    };
    let by_group = |of: fn(&GroupGradients) -> &Vec<f32>| -> Vec<&[f32]> {
        groups.iter().map(|group| &of(group)[..]).collect()
    };
    SsdGradients {
        x: tensor(interleave(&heads(|g| &g.x), batch, l, p), [batch, l, h, p]),
        a_log: tensor(interleave(&heads(|g| &g.a_log), batch, l, 1), [batch, l, h]),
        b: tensor(
            interleave(&by_group(|g| &g.b), batch, l, n),
            [batch, l, g, n],
        ),
        c: tensor(
            interleave(&by_group(|g| &g.c), batch, l, n),
            [batch, l, g, n],
        ),
        initial_state: tensor(heads(|g| &g.initial_state).concat(), [batch, h, p, n]),
    }
}
