//! On slices: one task a batch and group, a block of rows of both matrices at a time. Memory is
//! linear in the length.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{AttentionParts, MixingMatrices, TransferParts, reference};
use crate::dense::attention::flex::{Columns, Scores};
use crate::flex::math::{dot, flushed, sigmoid, sum, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, is_f32, tensor};

impl MixingMatrices for Flex {
    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        Self::mixing_distance_with_gradients(student, teacher).0
    }

    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        let TransferParts { a_log, b, c, d } = &student;
        let own = is_f32(a_log) && is_f32(b) && is_f32(c) && is_f32(d);
        if own && is_f32(&teacher.q) && is_f32(&teacher.k) {
            with_gradients(student, teacher)
        } else {
            reference::with_gradients(student, teacher)
        }
    }
}

/// Rows in a block.
const BLOCK: usize = 64;

struct Slices<'a> {
    a_log: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    d: &'a [f32],
    attention: Scores<'a>,
    /// Length, heads, groups, state.
    sizes: [usize; 4],
    /// One over batch times heads: the mean's weight.
    weight: f32,
}

/// One head's distance and its gradients.
struct HeadGradients {
    distance: f64,
    /// `[l]`
    a_log: Vec<f32>,
    /// `[l, n]`
    b: Vec<f32>,
    /// `[l, n]`
    c: Vec<f32>,
    d: f32,
}

fn head(inputs: &Slices, batch: usize, head: usize) -> HeadGradients {
    let [l, h, g, n] = inputs.sizes;
    let group = (batch * l * g + head / (h / g)) * n;
    let b = Matrix {
        values: &inputs.b[group..],
        row: g * n,
        column: 1,
    };
    let c = Matrix {
        values: &inputs.c[group..],
        row: g * n,
        column: 1,
    };
    let a_log = |t: usize| inputs.a_log[(batch * l + t) * h + head];
    let d = inputs.d[head];

    let (mut db, mut dc) = (vec![0.0; l * n], vec![0.0; l * n]);
    let (mut squares, mut dd) = (0.0, 0.0);
    let (mut decay, mut dlog) = (vec![0.0f32; l], vec![0.0f32; l]);
    // Sums of the log-decays' gradients along rows minus those along columns, in 64 bits because
    // most of it cancels.
    let mut rows_minus_columns = vec![0.0f64; l];
    let block = BLOCK.min(l);
    let mut attention = vec![0.0; block * l];
    let mut scores = vec![0.0; block * l];
    for start in (0..l).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(l);
        let (count, seen) = (rows.len(), rows.end);
        let columns = Columns::first(seen);
        let teacher = &inputs.attention;
        teacher.softmax_rows(batch, head, rows.clone(), &columns, &mut attention, l);
        let c_block = Matrix {
            values: &c.values[start * c.row..],
            ..c
        };
        multiply(
            [count, seen, n],
            &mut scores,
            l,
            0.0,
            c_block,
            b.transposed(),
            false,
        );
        for (r, t) in rows.enumerate() {
            let (row, rest) = scores[r * l..][..seen].split_at_mut(t + 1);
            let attention = &mut attention[r * l..][..t + 1];
            let (decay, dlog) = (&mut decay[..t + 1], &mut dlog[..t + 1]);
            let columns = &mut rows_minus_columns[..t + 1];
            vectorised(
                #[inline(always)]
                || {
                    let a = sigmoid(-a_log(t));
                    for value in &mut decay[..t] {
                        *value = flushed(a * *value);
                    }
                    decay[t] = 1.0;
                    let on_diagonal = row[t] + d - attention[t];
                    squares += f64::from(on_diagonal * on_diagonal);
                    dd += f64::from(on_diagonal);
                    // Before the diagonal: `attention` becomes the difference of the matrices, `row` its
                    // product with the decay, and `dlog` the gradient to the decay's logarithm (the
                    // diagonal has no decay in it).
                    let (row_before, before) = (&mut row[..t], &mut attention[..t]);
                    for i in 0..t {
                        let inside = row_before[i] * decay[i];
                        before[i] = inside - before[i];
                        dlog[i] = before[i] * inside;
                        row_before[i] = before[i] * decay[i];
                    }
                    squares += f64::from(dot(before, before));
                    columns[t] += f64::from(sum(&dlog[..t], |x| x));
                    for (column, dlog) in columns[..t].iter_mut().zip(&dlog[..t]) {
                        *column -= f64::from(*dlog);
                    }
                    row[t] = on_diagonal;
                    rest.fill(0.0);
                },
            );
        }
        let dscores = Matrix {
            values: &scores,
            row: l,
            column: 1,
        };
        multiply(
            [count, n, seen],
            &mut dc[start * n..],
            n,
            0.0,
            dscores,
            b,
            false,
        );
        multiply(
            [seen, n, count],
            &mut db,
            n,
            1.0,
            dscores.transposed(),
            c_block,
            false,
        );
    }

    let distance = squares.sqrt();
    let factor = if distance > 0.0 {
        (f64::from(inputs.weight) / distance) as f32
    } else {
        0.0
    };
    for value in db.iter_mut().chain(&mut dc) {
        *value *= factor;
    }
    let mut da_log = vec![0.0; l];
    let mut from_here = 0.0;
    for t in (0..l).rev() {
        from_here += rows_minus_columns[t];
        da_log[t] = -factor * from_here as f32 * sigmoid(a_log(t));
    }
    HeadGradients {
        distance,
        a_log: da_log,
        b: db,
        c: dc,
        d: factor * dd as f32,
    }
}

fn with_gradients(
    student: TransferParts<Flex>,
    teacher: AttentionParts<Flex>,
) -> (Tensor<Flex, 1>, TransferParts<Flex>) {
    let [batch, l, h] = student.a_log.dims();
    let [_, _, g, n] = student.b.dims();
    let ([_, _, _, p], [_, _, groups, _]) = (teacher.q.dims(), teacher.k.dims());
    let (a_log, b) = (Values::of(student.a_log), Values::of(student.b));
    let (c, d) = (Values::of(student.c), Values::of(student.d));
    let visible = teacher.visible();
    let (q, k) = (Values::of(teacher.q), Values::of(teacher.k));
    let inputs = Slices {
        a_log: &a_log,
        b: &b,
        c: &c,
        d: &d,
        attention: Scores::new(&q, &k, [l, l, h, groups, p], visible),
        sizes: [l, h, g, n],
        weight: 1.0 / (batch * h) as f32,
    };
    let heads: Vec<HeadGradients> = (0..batch * h)
        .into_par_iter()
        .map(|i| head(&inputs, i / h, i % h))
        .collect();

    let distances: f64 = heads.iter().map(|head| head.distance).sum();
    let loss = tensor(vec![(distances * f64::from(inputs.weight)) as f32], [1]);
    let dd = (0..h).map(|k| heads.iter().skip(k).step_by(h).map(|head| head.d).sum());
    let a_logs: Vec<&[f32]> = heads.iter().map(|head| &head.a_log[..]).collect();
    // B and C are shared by all heads of their group.
    let grouped = |of: fn(&HeadGradients) -> &Vec<f32>| {
        let sums: Vec<Vec<f32>> = heads
            .par_chunks(h / g)
            .map(|heads| {
                let mut total = of(&heads[0]).clone();
                for head in &heads[1..] {
                    for (sum, value) in total.iter_mut().zip(of(head)) {
                        *sum += value;
                    }
                }
                total
            })
            .collect();
        let sums: Vec<&[f32]> = sums.iter().map(|sum| &sum[..]).collect();
        tensor(interleave(&sums, batch, l, n), [batch, l, g, n])
    };
    let gradients = TransferParts {
        a_log: tensor(interleave(&a_logs, batch, l, 1), [batch, l, h]),
        b: grouped(|head| &head.b),
        c: grouped(|head| &head.c),
        d: tensor(dd.collect(), [h]),
    };
    (loss, gradients)
}
