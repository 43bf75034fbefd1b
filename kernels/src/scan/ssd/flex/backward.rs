//! The gradients: one task a batch and group of heads.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::decays::Decays;
use super::forward::{advance, chunks};
use super::heads::{Head, ScanValues, Sizes};
use super::rows::{add_elements, multiply_elements, row_dots, scale_rows, scaled_copy};
use crate::flex::math::{dot, sigmoid, sum, vectorised};
use crate::flex::products::{Matrix, multiply};
use crate::flex::{Values, interleave, tensor};
use crate::scan::ssd::{ScanInputs, SsdGradients};

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
    // The gradient to the state after the chunk. For the last chunk it is zero, because no output depends on the final
    // state.
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

pub(super) fn backward(
    scan: ScanInputs<Flex>,
    dy: Tensor<Flex, 4>,
    chunk: usize,
) -> SsdGradients<Flex> {
    let values = ScanValues::of(scan, chunk);
    let dy = Values::of(dy);
    let (batch, inputs) = (values.batch, values.slices());
    let Sizes { l, h, p, g, n, .. } = inputs.sizes;
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
