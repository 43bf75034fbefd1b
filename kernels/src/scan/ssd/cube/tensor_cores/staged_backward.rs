//! The gradients of one head, from its last chunk to its first, that of its state in registers, while the inputs of the
//! next chunk are copied to shared memory. Without a gate, whose inputs would leave no room for a second cube.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::super::decay::sigmoid;
use super::backward::{EpilogueParts, PLANES, row_sum};
use super::chunk_decays::{ChunkDecays, Through, read_a_logs};
use super::copies::{copy_state, copy_tokens, head_rows};
use super::epilogue_gradients::Shares;
use super::forward::{CHUNK, nth, write_tokens};
use super::product::{Eight, PLANE, Pair, Product};
use super::staged::{MULTIPROCESSOR, RESERVED};
use super::staged_states::{add_share, store_state};
use super::tile::Tile;

/// Units of a cube.
pub const UNITS: usize = PLANES * PLANE;
/// The planes that share a row of a product.
const SLOTS: usize = PLANES / 4;

/// Whether a multiprocessor of an H100 or H200 has room for two cubes.
pub fn takes(p: usize, n: usize) -> bool {
    2 * (shared_memory(p, n) + RESERVED) <= MULTIPROCESSOR && p * n <= 64 * 64
}

/// Bytes of shared memory.
pub fn shared_memory(p: usize, n: usize) -> usize {
    let chunks = 2 * CHUNK * (2 * p + 2 * n);
    let tiles = 2 * p * n + 3 * CHUNK * CHUNK;
    let sums = (3 * SLOTS + 2) * CHUNK + PLANES;
    // Decays; the shares of the skip; the barriers and what keeps tiles to whole lines.
    2 * (chunks + tiles) + 4 * (sums + 8 * CHUNK + 4 * p + PLANES) + 512
}

/// This unit's part of the sum of the elements of two tiles' rows from `at` on, multiplied.
#[cube]
fn times<E: Float>(a: &Tile<E>, b: &Tile<E>, at: usize, #[comptime] p: usize) -> f32 {
    let across = comptime!(p / 8);
    let vectors = comptime!(CHUNK * across);
    let mut sum = 0.0f32;
    #[unroll]
    for round in 0..comptime!(vectors.div_ceil(UNITS)) {
        let vector = UNIT_POS as usize + comptime!(round * UNITS);
        if comptime!((round + 1) * UNITS <= vectors) || vector < vectors {
            let (row, column) = (at + vector / across, vector % across);
            let products = Vector::<f32, Eight>::cast_from(a.get(row, column))
                * Vector::<f32, Eight>::cast_from(b.get(row, column));
            #[unroll]
            for i in 0..8usize {
                sum += products[i];
            }
        }
    }
    sum
}

/// All gradients of the chunks of a segment of one head, one chunk after the other.
///
/// Cubes: segments, batch times heads.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn walk_back<E: Float, S: Float>(
    x_blhp: &Tensor<Vector<E, Eight>>,
    b_blgn: &Tensor<Vector<E, Eight>>,
    c_blgn: &Tensor<Vector<E, Eight>>,
    // Of the outputs after the skip.
    dy_blhp: &Tensor<Vector<E, Eight>>,
    a_log_blh: &Tensor<f32>,
    d_h: &ComptimeOption<Tensor<f32>>,
    // The states that enter, [b, h, chunks, p, n].
    states: &Tensor<Vector<E, Eight>>,
    // The gradients of the states that leave the segments, [b, h, segments, p, n].
    leaving: &ComptimeOption<Tensor<f32>>,
    dx_blhp: &mut Tensor<Vector<E, Pair>>,
    // For each head, where heads share a group to be added up.
    db_blhn: &mut Tensor<Vector<S, Pair>>,
    dc_blhn: &mut Tensor<Vector<S, Pair>>,
    da_log_blh: &mut Tensor<f32>,
    // Each segment's share of the gradients to the gate's bias, which are 0, and after them to the skip:
    // [b, h, segments, p + 1].
    shares: &mut Tensor<f32>,
    // The gradients of the states that enter the segments, [b, h, segments, p, n].
    ends: &mut Tensor<f32>,
    chunks_of_segment: usize,
    #[comptime] p: usize,
    #[comptime] n: usize,
    #[comptime] epilogue: EpilogueParts,
    #[comptime] _given: [bool; 2],
    #[define(E)] _dtype: StorageType,
    #[define(S)] _sum_dtype: StorageType,
) {
    let l = x_blhp.shape(1);
    let h = x_blhp.shape(2);
    let matrix = CUBE_POS_Y as usize;
    let batch = matrix / h;
    let head = matrix % h;
    let group = head / (h / b_blgn.shape(2));
    let segment = matrix * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let chunks = l.div_ceil(CHUNK);
    let first = CUBE_POS_X as usize * chunks_of_segment;
    let end = min(first + chunks_of_segment, chunks);
    let count = end - first;
    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let x_rows = head_rows(x_blhp, batch, head);
    let dy_rows = head_rows(dy_blhp, batch, head);
    let b_rows = head_rows(b_blgn, batch, group);
    let c_rows = head_rows(c_blgn, batch, group);

    let both = comptime!(2 * CHUNK);
    let mut x = Tile::<E>::new(both, p);
    let mut dy = Tile::<E>::new(both, p);
    let mut b = Tile::<E>::new(both, n);
    let mut c = Tile::<E>::new(both, n);
    let mut state_pn = Tile::<E>::new(p, n);
    let mut dstate_pn = Tile::<E>::new(p, n);
    let mut weights = Tile::<E>::new(CHUNK, CHUNK);
    let mut dscores = Tile::<E>::new(CHUNK, CHUNK);
    let mut paths = Tile::<E>::new(CHUNK, CHUNK);
    let mut decays = ChunkDecays::new();
    let mut inside = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut enters = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut leaves = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut entering_from = SharedMemory::<f32>::new(CHUNK);
    let mut leaving_before = SharedMemory::<f32>::new(CHUNK);
    let mut through = SharedMemory::<f32>::new(PLANES);
    let mut a_logs = Array::<f32>::new(2usize);
    let of_bias = Shares::new(p);
    let mut of_skip = 0.0f32;

    let mut dstate = Product::new(p, n, PLANES);
    #[comptime]
    match leaving {
        ComptimeOption::Some(leaving) => {
            if dstate.busy {
                #[unroll]
                for i in 0..dstate.pairs() {
                    let at = (segment * p + dstate.row(i)) * n + dstate.column(i);
                    let mut pair = Vector::<f32, Pair>::empty();
                    pair[0] = leaving[at];
                    pair[1] = leaving[at + 1];
                    dstate.set(i, pair);
                }
            }
        }
        ComptimeOption::None => {}
    }

    // Of a chunk: whether it has come, and whether all planes are done with the one after it.
    let here = Barrier::shared(comptime!(UNITS as u32).runtime(), UNIT_POS == 0);
    let state_here = Barrier::shared(comptime!(UNITS as u32).runtime(), UNIT_POS == 0);
    let token = (end - 1) * CHUNK;
    copy_tokens(&mut x, 0, x_blhp, x_rows, token, l - token, p, UNITS);
    copy_tokens(&mut dy, 0, dy_blhp, dy_rows, token, l - token, p, UNITS);
    copy_tokens(&mut b, 0, b_blgn, b_rows, token, l - token, n, UNITS);
    copy_tokens(&mut c, 0, c_blgn, c_rows, token, l - token, n, UNITS);
    here.commit_copy_async();
    if plane == 0 {
        read_a_logs(&mut a_logs, a_log_blh, batch, token, l - token, head);
        decays.write(&a_logs, 0);
    }
    store_state(&dstate, &mut dstate_pn, 0);

    for i in 0..count {
        here.arrive_and_wait();
        let k = nth(i, first, end, true);
        let first_token = k * CHUNK;
        let at = i % 2 * CHUNK;
        let next_at = CHUNK - at;
        let next = i + 1;
        let state = (matrix * chunks + k) * comptime!(p * n / 8);
        copy_state(&mut state_pn, states, state, p, n, UNITS);
        state_here.commit_copy_async();
        let _ = state_here.arrive();
        if next < count {
            let token = first_token - CHUNK;
            copy_tokens(&mut x, next_at, x_blhp, x_rows, token, CHUNK, p, UNITS);
            copy_tokens(&mut dy, next_at, dy_blhp, dy_rows, token, CHUNK, p, UNITS);
            copy_tokens(&mut b, next_at, b_blgn, b_rows, token, CHUNK, n, UNITS);
            copy_tokens(&mut c, next_at, c_blgn, c_rows, token, CHUNK, n, UNITS);
            if plane == 0 {
                read_a_logs(&mut a_logs, a_log_blh, batch, token, CHUNK, head);
            }
        }
        here.commit_copy_async();
        if comptime!(epilogue.skip) {
            of_skip += times(&x, &dy, at, p);
        }

        let mut scores = Product::new(CHUNK, CHUNK, PLANES);
        scores.add_tiles(&c, at, &b, at, [false, true], n);
        let mut dweights = Product::new(CHUNK, CHUNK, PLANES);
        dweights.add_tiles(&dy, at, &x, at, [false, true], p);
        let mut throughs = Sequence::<Through>::new();
        throughs.push(decays.through(at, scores.row(0usize)));
        throughs.push(decays.through(at, scores.row(1usize)));
        #[unroll]
        for i in 0..scores.pairs() {
            let t = scores.row(i);
            let s = scores.column(i);
            let mut decay = decays.within(at, *throughs.index(comptime!(i % 2)), s);
            decay[0] = select(s <= t, decay[0], 0.0f32);
            decay[1] = select(s < t, decay[1], 0.0f32);
            let weight = scores.get(i) * decay;
            let mut path = weight * dweights.get(i);
            // The diagonal passes no decay.
            path[0] = select(s < t, path[0], 0.0f32);
            path[1] = select(s + 1 < t, path[1], 0.0f32);
            weights.set_pair(t, s, Vector::cast_from(weight));
            dscores.set_pair(t, s, Vector::cast_from(dweights.get(i) * decay));
            paths.set_pair(t, s, Vector::cast_from(path));
        }
        sync_cube();

        let mut dx = Product::new(CHUNK, p, PLANES);
        dx.add_tiles(&b, at, &dstate_pn, 0, [false, true], n);
        let sums = dx.decay_rows_of_tile(&decays, at, &x, at, false);
        dx.store_row_sums(&sums, &mut leaves, 0usize);
        dx.add_tiles(&weights, 0, &dy, at, [true, false], CHUNK);
        #[comptime]
        match d_h {
            ComptimeOption::Some(d) => {
                let d = Vector::<f32, Pair>::new(d[head]);
                // An idle plane's rows are beyond the matrix.
                if dx.busy {
                    #[unroll]
                    for i in 0..dx.pairs() {
                        let dy = dy.pair(at + dx.row(i), dx.column(i));
                        let sum = dx.get(i) + d * Vector::<f32, Pair>::cast_from(dy);
                        dx.set(i, sum);
                    }
                }
            }
            ComptimeOption::None => {}
        }
        write_tokens(&dx, dx_blhp, batch, first_token, l, h, head, p);

        let mut db = Product::new(CHUNK, n, PLANES);
        db.add_tiles(&x, at, &dstate_pn, 0, [false, false], p);
        db.decay_rows_of_tile(&decays, at, &b, at, false);
        db.add_tiles(&dscores, 0, &c, at, [true, false], CHUNK);
        write_tokens(&db, db_blhn, batch, first_token, l, h, head, n);

        state_here.wait_parity(i as u32 % 2);
        let mut dc = Product::new(CHUNK, n, PLANES);
        dc.add_tiles(&dy, at, &state_pn, 0, [false, false], p);
        let sums = dc.decay_rows_of_tile(&decays, at, &c, at, true);
        dc.store_row_sums(&sums, &mut enters, 0usize);
        dc.add_tiles(&dscores, 0, &b, at, [false, false], CHUNK);
        write_tokens(&dc, dc_blhn, batch, first_token, l, h, head, n);

        // Paths inside that pass each token: from a row on, and of those the columns before it.
        let mut passing = Product::new(CHUNK, CHUNK, PLANES);
        passing.add_tile_from_row_on(&paths, CHUNK);
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = 0.0f32;
        sums[1] = 0.0f32;
        #[unroll]
        for i in 0..passing.pairs() {
            let pair = passing.get(i);
            let (row, column) = (passing.row(i), passing.column(i));
            sums[comptime!(i % 2)] += select(column < row, pair[0], 0.0f32);
            sums[comptime!(i % 2)] += select(column + 1 < row, pair[1], 0.0f32);
        }
        passing.store_row_sums(&sums, &mut inside, 0usize);

        let decay = decays.whole(at);
        let mut runs = 0.0f32;
        if dstate.busy {
            #[unroll]
            for i in 0..dstate.pairs() {
                let state = state_pn.pair(dstate.row(i), dstate.column(i));
                let product = Vector::<f32, Pair>::cast_from(state) * dstate.get(i);
                runs += product[0] + product[1];
            }
        }
        let runs = plane_sum(runs * decay);
        if UNIT_POS_PLANE == 0 {
            through[plane] = runs;
        }
        dstate.scale(decay);
        add_share(&mut dstate, &dy, &c, &decays, at, true);
        sync_cube();

        store_state(&dstate, &mut dstate_pn, 0);
        // Of the paths that enter, those to a token or one after it pass it; of those that leave, those
        // from a token before it. The first plane adds up from the end, the second from the start. The first also makes the
        // decays of the next chunk.
        if plane == 0 {
            let t = comptime!(CHUNK - 2) - unit * 2;
            let last = row_sum(&enters, t + 1, dc.slots);
            let both = row_sum(&enters, t, dc.slots) + last;
            let after = plane_exclusive_sum(both);
            entering_from[t] = after + both;
            entering_from[t + 1] = after + last;
            if next < count {
                decays.write(&a_logs, next_at);
            }
        } else if plane == 1 {
            let t = (unit - 32) * 2;
            let first = row_sum(&leaves, t, dx.slots);
            let both = first + row_sum(&leaves, t + 1, dx.slots);
            let before = plane_exclusive_sum(both);
            leaving_before[t] = before;
            leaving_before[t + 1] = before + first;
        }
        sync_cube();
        if unit < CHUNK && first_token + unit < l {
            let mut total = row_sum(&inside, unit, passing.slots);
            total += entering_from[unit] + leaving_before[unit];
            #[unroll]
            for plane in 0..PLANES {
                total += through[plane];
            }
            let index = batch * a_log_blh.stride(0)
                + (first_token + unit) * a_log_blh.stride(1)
                + head * a_log_blh.stride(2);
            da_log_blh[(batch * l + first_token + unit) * h + head] =
                -total * sigmoid(a_log_blh[index]);
        }
    }

    if comptime!(epilogue.skip) {
        sync_cube();
        of_bias.write(of_skip, shares, segment * (p + 1));
    }
    if dstate.busy {
        #[unroll]
        for i in 0..dstate.pairs() {
            let at = (segment * p + dstate.row(i)) * n + dstate.column(i);
            let pair = dstate.get(i);
            ends[at] = pair[0];
            ends[at + 1] = pair[1];
        }
    }
}
