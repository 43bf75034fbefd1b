//! The scan of one head, chunk by chunk, its state in registers.

use cubecl::prelude::*;

use super::decay::{self, Decays};
use super::matrix::{Eight, Fetched, Matrix, Pair, Product};

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emit {
    /// Only the state at its end.
    Last,
    /// The state that enters each chunk.
    States,
    /// The outputs.
    Outputs,
}

/// The comptime part of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub emit: Emit,
    /// Whether it goes from the last chunk to the first.
    pub backwards: bool,
    /// Whether it writes the state at its end.
    pub ends: bool,
    pub p: usize,
    pub n: usize,
}

/// Tokens of a chunk: the scores' 64 x 64 fill the planes' fragments.
pub const CHUNK: usize = 64;

/// Planes of a cube: of 128 registers a unit, two cubes fit a multiprocessor.
pub const PLANES: usize = 8;

/// Whether the loads of the next chunk fit the registers beside this one's products.
pub fn fits(p: usize, n: usize) -> bool {
    p * n <= 64 * 64
}

/// The `i`-th chunk of a walk from `first` to before `end`.
#[cube]
pub fn nth(i: usize, first: usize, end: usize, #[comptime] backwards: bool) -> usize {
    let mut k = first + i;
    if comptime!(backwards) {
        k = end - 1 - i;
    }
    k
}

/// Starts to read a chunk of one head of `[b, l, heads, features]`.
#[cube]
pub fn fetch_tokens<E: Float>(
    to: &mut Fetched<E>,
    from: &Tensor<Vector<E, Eight>>,
    batch: usize,
    head: usize,
    chunk: usize,
) {
    let first_token = chunk * CHUNK;
    let first = batch * from.stride(0) + first_token * from.stride(1) + head * from.stride(2);
    to.fetch(from, first, from.stride(1), from.shape(1) - first_token);
}

/// Steps 1 to 4 in one: the chunks of a segment of one head, one after the other.
///
/// Forwards `rows` is x and `columns` is B. Backwards, for the gradient of the state, they are dy and C.
///
/// Cubes: segments, batch times heads.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn walk<E: Float>(
    rows_blhp: &Tensor<Vector<E, Eight>>,
    columns_blgn: &Tensor<Vector<E, Eight>>,
    // Read for outputs only.
    c_blgn: &Tensor<Vector<E, Eight>>,
    a_log_blh: &Tensor<f32>,
    // [b, h, segments, p, n]
    entering: &ComptimeOption<Tensor<f32>>,
    // The outputs [b, l, h, p], or the states [b, h, chunks, p, n].
    out: &mut Tensor<Vector<E, Pair>>,
    // [b, h, segments, p, n]
    ends: &mut Tensor<f32>,
    // [b, h, segments]
    segment_decays: &mut Tensor<f32>,
    chunks_of_segment: usize,
    #[comptime] of: Plan,
    #[define(E)] _dtype: StorageType,
) {
    let (p, n) = comptime!((of.p, of.n));
    let outputs = comptime!(of.emit == Emit::Outputs);
    // Shared memory is for what this walk needs.
    let tokens_if_outputs = comptime!(if outputs { CHUNK } else { 1 });
    let l = rows_blhp.shape(1);
    let h = rows_blhp.shape(2);
    let matrix = CUBE_POS_Y as usize;
    let batch = matrix / h;
    let head = matrix % h;
    let group = head / (h / columns_blgn.shape(2));
    let segment = matrix * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let chunks = l.div_ceil(CHUNK);
    let first = CUBE_POS_X as usize * chunks_of_segment;
    let end = min(first + chunks_of_segment, chunks);

    let mut decays = Decays::new(CHUNK);
    let mut rows = Matrix::<E, Eight>::new(tokens_if_outputs, p, 8usize);
    let mut decayed_rows = Matrix::<E, Eight>::new(CHUNK, p, 8usize);
    let mut columns = Matrix::<E, Eight>::new(CHUNK, n, 8usize);
    let mut c = Matrix::<E, Eight>::new(tokens_if_outputs, n, 8usize);
    let mut weights = Matrix::<E, Pair>::new(tokens_if_outputs, CHUNK, 2usize);
    let mut state_pn = Matrix::<E, Pair>::new(comptime!(if outputs { p } else { 1 }), n, 2usize);
    let mut next_a_logs = Array::<f32>::new(2usize);
    let mut next_rows = Fetched::<E>::new(CHUNK, p, PLANES);
    let mut next_columns = Fetched::<E>::new(CHUNK, n, PLANES);
    let mut next_c = Fetched::<E>::new(CHUNK, n, PLANES);

    let mut state = Product::new(p, n, PLANES);
    #[comptime]
    match entering {
        ComptimeOption::Some(entering) => {
            if state.busy {
                #[unroll]
                for i in 0..state.pairs() {
                    let at = (segment * p + state.row(i)) * n + state.column(i);
                    let mut pair = Vector::<f32, Pair>::empty();
                    pair[0] = entering[at];
                    pair[1] = entering[at + 1];
                    state.set(i, pair);
                }
            }
        }
        ComptimeOption::None => {}
    }
    let mut total_decay = 1.0f32;

    if comptime!(fits(p, n)) {
        let k = nth(0usize, first, end, of.backwards);
        decay::fetch(
            &mut next_a_logs,
            a_log_blh,
            batch,
            k * CHUNK,
            l - k * CHUNK,
            head,
        );
        fetch_tokens(&mut next_rows, rows_blhp, batch, head, k);
        fetch_tokens(&mut next_columns, columns_blgn, batch, group, k);
        if comptime!(outputs) {
            fetch_tokens(&mut next_c, c_blgn, batch, group, k);
        }
    }
    for i in 0..end - first {
        let k = nth(i, first, end, of.backwards);
        let first_token = k * CHUNK;
        if comptime!(!fits(p, n)) {
            decay::fetch(
                &mut next_a_logs,
                a_log_blh,
                batch,
                k * CHUNK,
                l - k * CHUNK,
                head,
            );
            fetch_tokens(&mut next_rows, rows_blhp, batch, head, k);
            fetch_tokens(&mut next_columns, columns_blgn, batch, group, k);
            if comptime!(outputs) {
                fetch_tokens(&mut next_c, c_blgn, batch, group, k);
            }
        }
        decays.scan(&next_a_logs);
        next_columns.store(&mut columns);
        if comptime!(outputs) {
            next_rows.store(&mut rows);
            next_c.store(&mut c);
            state.store(&mut state_pn);
        }
        if state.busy {
            let first_row = (matrix * chunks + k) * p;
            if comptime!(of.emit == Emit::States) {
                #[unroll]
                for i in 0..state.pairs() {
                    let row = first_row + state.row(i);
                    out[(row * n + state.column(i)) / 2] = Vector::cast_from(state.get(i));
                }
            }
        }
        sync_cube();
        next_rows.store_decayed(&mut decayed_rows, &decays, of.backwards);
        if i + 1 < end - first {
            let k = nth(i + 1, first, end, of.backwards);
            if comptime!(fits(p, n)) {
                decay::fetch(
                    &mut next_a_logs,
                    a_log_blh,
                    batch,
                    k * CHUNK,
                    l - k * CHUNK,
                    head,
                );
                fetch_tokens(&mut next_rows, rows_blhp, batch, head, k);
                fetch_tokens(&mut next_columns, columns_blgn, batch, group, k);
                if comptime!(outputs) {
                    fetch_tokens(&mut next_c, c_blgn, batch, group, k);
                }
            }
        }
        if comptime!(outputs) {
            let mut scores = Product::new(CHUNK, CHUNK, PLANES);
            scores.add(&c, &columns, false, true, n);
            #[unroll]
            for i in 0..scores.pairs() {
                let t = scores.row(i);
                let s = scores.column(i);
                let mut pair = scores.get(i);
                pair[0] *= decays.within(t, s, false);
                pair[1] *= decays.within(t, s + 1, false);
                weights.set(t, s, Vector::cast_from(pair));
            }
        }
        sync_cube();
        if comptime!(outputs) {
            let mut y = Product::new(CHUNK, p, PLANES);
            y.add(&c, &state_pn, false, true, n);
            y.decay_rows(&decays, &rows, true);
            y.add(&weights, &rows, false, false, CHUNK);
            if y.busy {
                #[unroll]
                for i in 0..y.pairs() {
                    let t = first_token + y.row(i);
                    if t < l {
                        let at = ((batch * l + t) * h + head) * p + y.column(i);
                        out[at / 2] = Vector::cast_from(y.get(i));
                    }
                }
            }
        }
        let decay = decays.between(0, CHUNK);
        state.scale(decay);
        state.add(&decayed_rows, &columns, true, false, CHUNK);
        total_decay *= decay;
        sync_cube();
    }

    if comptime!(of.ends) {
        if state.busy {
            #[unroll]
            for i in 0..state.pairs() {
                let at = (segment * p + state.row(i)) * n + state.column(i);
                let pair = state.get(i);
                ends[at] = pair[0];
                ends[at + 1] = pair[1];
            }
        }
        if UNIT_POS == 0 {
            segment_decays[segment] = total_decay;
        }
    }
}
