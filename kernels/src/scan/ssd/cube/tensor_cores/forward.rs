//! The scan of one head, chunk by chunk, its state in registers.

use cubecl::prelude::*;

use super::super::decay::{self, Decays};
use super::epilogue;
use super::loads::Fetched;
use super::product::{Eight, Matrix, Pair, Product};

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
    /// Whether there is a gate.
    pub gate: bool,
    pub p: usize,
    pub n: usize,
}
/// Tokens of a chunk: the scores' 64 x 64 fill the planes' fragments.
pub const CHUNK: usize = 64;

/// Planes of a cube: of 128 registers a unit, two cubes fit a multiprocessor.
pub const PLANES: usize = 8;

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

/// Writes a product of a chunk's tokens by a head's features to `[b, l, heads, features]`, rounded.
#[cube]
pub fn write_tokens<S: Float>(
    product: &Product,
    to: &mut Tensor<Vector<S, Pair>>,
    batch: usize,
    first_token: usize,
    l: usize,
    heads: usize,
    head: usize,
    #[comptime] features: usize,
) {
    let first = ((batch * l + first_token) * heads + head) * features;
    let row = heads * features;
    if product.busy {
        if first_token + CHUNK <= l {
            #[unroll]
            for i in 0..product.pairs() {
                let at = first + product.row(i) * row + product.column(i);
                to[at / 2] = Vector::cast_from(product.get(i));
            }
        } else {
            #[unroll]
            for i in 0..product.pairs() {
                if first_token + product.row(i) < l {
                    let at = first + product.row(i) * row + product.column(i);
                    to[at / 2] = Vector::cast_from(product.get(i));
                }
            }
        }
    }
}

/// Starts to read what gates a chunk of one head, of `[b, l, channels]`, if there is a gate.
#[cube]
pub fn fetch_gate<E: Float>(
    to: &mut Fetched<E>,
    from: &ComptimeOption<Tensor<Vector<E, Eight>>>,
    batch: usize,
    first_channel: usize,
    chunk: usize,
) {
    #[comptime]
    match from {
        ComptimeOption::Some(z) => {
            let first_token = chunk * CHUNK;
            let first = batch * z.stride(0) + first_token * z.stride(1) + first_channel;
            to.fetch(z, first, z.stride(1), z.shape(1) - first_token);
        }
        ComptimeOption::None => {}
    }
}

/// Steps 1 to 4 in one: the chunks of a segment of one head, one after the other.
///
/// Forwards `rows` is x and `columns` is B, and outputs pass through the skip and the gate. Backwards, for
/// the gradient of the state, they are dy and C; of the outputs after a gate, which dy then
/// passes on its way here.
///
/// Cubes: segments, batch times heads.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn walk<E: Float>(
    rows_blhp: &Tensor<Vector<E, Eight>>,
    columns_blgn: &Tensor<Vector<E, Eight>>,
    // Read for outputs only.
    c_blgn: &Tensor<Vector<E, Eight>>,
    a_log_blh: &Tensor<f32>,
    d_h: &ComptimeOption<Tensor<f32>>,
    z_blc: &ComptimeOption<Tensor<Vector<E, Eight>>>,
    z_bias_c: &ComptimeOption<Tensor<f32>>,
    // [b, h, segments, p, n]
    entering: &ComptimeOption<Tensor<f32>>,
    // The outputs [b, l, h, p], or the states [b, h, chunks, p, n].
    out: &mut Tensor<Vector<E, Pair>>,
    // The states [b, h, chunks, p, n] beside the outputs.
    states: &mut ComptimeOption<Tensor<Vector<E, Pair>>>,
    // [b, h, segments, p, n]
    ends: &mut Tensor<f32>,
    // [b, h, segments]
    segment_decays: &mut Tensor<f32>,
    chunks_of_segment: usize,
    #[comptime] of: Plan,
    #[comptime] _given: [bool; 5],
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
    let gated = comptime!(outputs && of.gate);
    let mut z = Matrix::<E, Eight>::new(comptime!(if gated { CHUNK } else { 1 }), p, 8usize);
    let mut z_bias = SharedMemory::<f32>::new(p);
    if comptime!(gated) {
        // Seen by all after the first barrier of the loop.
        epilogue::load_bias(&mut z_bias, z_bias_c, head * p, p);
    }
    let mut state_pn = Matrix::<E, Pair>::new(comptime!(if outputs { p } else { 1 }), n, 2usize);
    let mut read_a_logs = Array::<f32>::new(2usize);
    let mut read_rows = Fetched::<E>::new(CHUNK, p, PLANES, false);
    let mut read_columns = Fetched::<E>::new(CHUNK, n, PLANES, false);
    let mut read_c = Fetched::<E>::new(CHUNK, n, PLANES, false);
    let mut read_z = Fetched::<E>::new(CHUNK, p, PLANES, false);

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

    for i in 0..end - first {
        let k = nth(i, first, end, of.backwards);
        let first_token = k * CHUNK;
        decay::fetch(
            &mut read_a_logs,
            a_log_blh,
            batch,
            first_token,
            l - first_token,
            head,
        );
        fetch_tokens(&mut read_rows, rows_blhp, batch, head, k);
        fetch_tokens(&mut read_columns, columns_blgn, batch, group, k);
        if comptime!(outputs) {
            fetch_tokens(&mut read_c, c_blgn, batch, group, k);
        }
        fetch_gate(&mut read_z, z_blc, batch, head * p, k);
        decays.scan(&read_a_logs);
        read_columns.store(&mut columns);
        if comptime!(outputs) {
            read_rows.store(&mut rows);
            read_c.store(&mut c);
            state.store(&mut state_pn);
            if comptime!(of.gate) {
                read_z.store(&mut z);
            }
        } else if comptime!(of.gate) {
            // Its sum is for the walk back only.
            let nothing = Fetched::<E>::new(CHUNK, p, PLANES, false);
            read_rows.ungate(&mut read_z, z_bias_c, head * p, &nothing);
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
            #[comptime]
            match states {
                ComptimeOption::Some(states) =>
                {
                    #[unroll]
                    for i in 0..state.pairs() {
                        let row = first_row + state.row(i);
                        states[(row * n + state.column(i)) / 2] = Vector::cast_from(state.get(i));
                    }
                }
                ComptimeOption::None => {}
            }
        }
        sync_cube();
        read_rows.store_decayed(&mut decayed_rows, &decays, of.backwards);
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
            epilogue::skip(&mut y, &rows, d_h, head);
            if comptime!(of.gate) {
                epilogue::gate(&mut y, &z, &z_bias);
            }
            write_tokens(&y, out, batch, first_token, l, h, head, p);
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
