//! The gradients of one head, from its last chunk to its first, that of its state in registers.

use cubecl::prelude::*;

use super::super::decay::{self, Decays, sigmoid};
use super::epilogue;
use super::epilogue_gradients::Shares;
use super::forward::{CHUNK, fetch_gate, fetch_tokens, nth, write_tokens};
use super::loads::Fetched;
use super::product::{Eight, Matrix, PLANE, Pair, Product};

/// Planes of a cube: at no more than 128 registers a unit, two cubes fit a multiprocessor.
pub const PLANES: usize = 8;

/// The planes that share a row of a product.
const SLOTS: usize = PLANES / 4;

/// Which parts the epilogue has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpilogueParts {
    pub skip: bool,
    pub gate: bool,
}

/// All gradients of the chunks of a segment of one head, one chunk after the other.
///
/// Cubes: segments, batch times heads.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn walk_back<E: Float, S: Float>(
    x_blhp: &Tensor<Vector<E, Eight>>,
    b_blgn: &Tensor<Vector<E, Eight>>,
    c_blgn: &Tensor<Vector<E, Eight>>,
    // Of the outputs after the skip and the gate.
    dy_blhp: &Tensor<Vector<E, Eight>>,
    a_log_blh: &Tensor<f32>,
    d_h: &ComptimeOption<Tensor<f32>>,
    z_blc: &ComptimeOption<Tensor<Vector<E, Eight>>>,
    z_bias_c: &ComptimeOption<Tensor<f32>>,
    // The states that enter, [b, h, chunks, p, n].
    states: &Tensor<Vector<E, Eight>>,
    // The gradients of the states that leave the segments, [b, h, segments, p, n].
    leaving: &ComptimeOption<Tensor<f32>>,
    dx_blhp: &mut Tensor<Vector<E, Pair>>,
    // For each head, where heads share a group to be added up.
    db_blhn: &mut Tensor<Vector<S, Pair>>,
    dc_blhn: &mut Tensor<Vector<S, Pair>>,
    da_log_blh: &mut Tensor<f32>,
    // Written where there is a gate.
    dz_blhp: &mut Tensor<Vector<E, Pair>>,
    // Each segment's share of the gradients to the gate's bias, and after them to the skip:
    // [b, h, segments, p + 1].
    shares: &mut Tensor<f32>,
    // The gradients of the states that enter the segments, [b, h, segments, p, n].
    ends: &mut Tensor<f32>,
    chunks_of_segment: usize,
    #[comptime] p: usize,
    #[comptime] n: usize,
    #[comptime] epilogue: EpilogueParts,
    #[comptime] _given: [bool; 4],
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
    let unit = UNIT_POS as usize;

    let mut decays = Decays::new(CHUNK);
    let mut x = Matrix::<E, Eight>::new(CHUNK, p, 8usize);
    let mut dy = Matrix::<E, Eight>::new(CHUNK, p, 8usize);
    let mut decayed_dy = Matrix::<E, Eight>::new(CHUNK, p, 8usize);
    let mut b = Matrix::<E, Eight>::new(CHUNK, n, 8usize);
    let mut c = Matrix::<E, Eight>::new(CHUNK, n, 8usize);
    let mut state_pn = Matrix::<E, Eight>::new(p, n, 8usize);
    let mut dstate_pn = Matrix::<E, Pair>::new(p, n, 2usize);
    let mut weights = Matrix::<E, Pair>::new(CHUNK, CHUNK, 2usize);
    let mut dscores = Matrix::<E, Pair>::new(CHUNK, CHUNK, 2usize);
    let mut paths = Matrix::<E, Pair>::new(CHUNK, CHUNK, 2usize);
    let mut inside = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut enters = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut leaves = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut entering_from = SharedMemory::<f32>::new(CHUNK);
    let mut leaving_before = SharedMemory::<f32>::new(CHUNK);
    let mut through = SharedMemory::<f32>::new(PLANES);
    let mut read_a_logs = Array::<f32>::new(2usize);
    let mut read_x = Fetched::<E>::new(CHUNK, p, PLANES, true);
    let mut read_dy = Fetched::<E>::new(CHUNK, p, PLANES, true);
    let mut read_b = Fetched::<E>::new(CHUNK, n, PLANES, true);
    let mut read_c = Fetched::<E>::new(CHUNK, n, PLANES, true);
    let mut read_state = Fetched::<E>::new(p, n, PLANES, true);
    let mut read_z = Fetched::<E>::new(CHUNK, p, PLANES, true);
    let tokens_if_gated = comptime!(if epilogue.gate { CHUNK } else { 1 });
    let mut slopes = Matrix::<E, Eight>::new(tokens_if_gated, p, 8usize);
    let mut of_bias = Shares::new(p);
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

    for i in 0..end - first {
        let k = nth(i, first, end, true);
        let first_token = k * CHUNK;
        decay::fetch(
            &mut read_a_logs,
            a_log_blh,
            batch,
            first_token,
            l - first_token,
            head,
        );
        fetch_tokens(&mut read_x, x_blhp, batch, head, k);
        fetch_tokens(&mut read_dy, dy_blhp, batch, head, k);
        fetch_tokens(&mut read_b, b_blgn, batch, group, k);
        fetch_tokens(&mut read_c, c_blgn, batch, group, k);
        read_state.fetch(states, (matrix * chunks + k) * p * n, n, p);
        fetch_gate(&mut read_z, z_blc, batch, head * p, k);
        decays.scan(&read_a_logs);
        read_b.store(&mut b);
        read_c.store(&mut c);
        read_state.store(&mut state_pn);
        dstate.store(&mut dstate_pn);
        // Once the registers of the others are free.
        if comptime!(epilogue.gate) {
            of_skip += read_dy.ungate(&mut read_z, z_bias_c, head * p, &read_x);
            read_z.store(&mut slopes);
        } else if comptime!(epilogue.skip) {
            of_skip += read_dy.times(&read_x);
        }
        read_x.store(&mut x);
        read_dy.store(&mut dy);
        sync_cube();
        read_dy.store_decayed(&mut decayed_dy, &decays, true);

        let mut scores = Product::new(CHUNK, CHUNK, PLANES);
        scores.add(&c, &b, false, true, n);
        let mut dweights = Product::new(CHUNK, CHUNK, PLANES);
        dweights.add(&dy, &x, false, true, p);
        #[unroll]
        for i in 0..scores.pairs() {
            let t = scores.row(i);
            let s = scores.column(i);
            let mut decay = Vector::<f32, Pair>::empty();
            decay[0] = decays.within(t, s, false);
            decay[1] = decays.within(t, s + 1, false);
            let weight = scores.get(i) * decay;
            let mut path = weight * dweights.get(i);
            // The diagonal passes no decay.
            if s >= t {
                path[0] = 0.0f32;
            }
            if s + 1 >= t {
                path[1] = 0.0f32;
            }
            weights.set(t, s, Vector::cast_from(weight));
            dscores.set(t, s, Vector::cast_from(dweights.get(i) * decay));
            paths.set(t, s, Vector::cast_from(path));
        }
        sync_cube();

        let mut dx = Product::new(CHUNK, p, PLANES);
        dx.add(&b, &dstate_pn, false, true, n);
        let sums = dx.decay_rows(&decays, &x, false);
        dx.store_row_sums(&sums, &mut leaves, 0usize);
        dx.add(&weights, &dy, true, false, CHUNK);
        if comptime!(epilogue.skip) {
            epilogue::skip(&mut dx, &dy, d_h, head);
        }
        write_tokens(&dx, dx_blhp, batch, first_token, l, h, head, p);

        // The output before the gate, again.
        if comptime!(epilogue.gate) {
            let mut dz = Product::new(CHUNK, p, PLANES);
            dz.add(&c, &state_pn, false, true, n);
            dz.decay_rows(&decays, &x, true);
            dz.add(&weights, &x, false, false, CHUNK);
            epilogue::skip(&mut dz, &x, d_h, head);
            if dz.busy {
                #[unroll]
                for i in 0..dz.pairs() {
                    let slope = slopes.pair(dz.row(i), dz.column(i));
                    let gradient = dz.get(i) * Vector::<f32, Pair>::cast_from(slope);
                    dz.set(i, gradient);
                }
            }
            of_bias.add(&dz);
            write_tokens(&dz, dz_blhp, batch, first_token, l, h, head, p);
        }

        let mut dc = Product::new(CHUNK, n, PLANES);
        dc.add(&dy, &state_pn, false, false, p);
        let sums = dc.decay_rows(&decays, &c, true);
        dc.store_row_sums(&sums, &mut enters, 0usize);
        dc.add(&dscores, &b, false, false, CHUNK);
        write_tokens(&dc, dc_blhn, batch, first_token, l, h, head, n);

        let mut db = Product::new(CHUNK, n, PLANES);
        db.add(&x, &dstate_pn, false, false, p);
        db.decay_rows(&decays, &b, false);
        db.add(&dscores, &c, true, false, CHUNK);
        write_tokens(&db, db_blhn, batch, first_token, l, h, head, n);

        // Paths inside that pass each token: from a row on, and of those the columns before it.
        let mut passing = Product::new(CHUNK, CHUNK, PLANES);
        passing.add_from_row_on(&paths, CHUNK);
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = 0.0f32;
        sums[1] = 0.0f32;
        #[unroll]
        for i in 0..passing.pairs() {
            let pair = passing.get(i);
            if passing.column(i) < passing.row(i) {
                sums[comptime!(i % 2)] += pair[0];
            }
            if passing.column(i) + 1 < passing.row(i) {
                sums[comptime!(i % 2)] += pair[1];
            }
        }
        passing.store_row_sums(&sums, &mut inside, 0usize);

        let decay = decays.between(0, CHUNK);
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
            through[unit / PLANE] = runs;
        }
        dstate.scale(decay);
        dstate.add(&decayed_dy, &c, true, false, CHUNK);
        sync_cube();

        // Of the paths that enter, those to a token or one after it pass it; of those that leave, those
        // from a token before it. The first plane adds up from the end, the second from the start.
        if unit < 32 {
            let t = comptime!(CHUNK - 2) - 2 * unit;
            let last = row_sum(&enters, t + 1, dc.slots);
            let both = row_sum(&enters, t, dc.slots) + last;
            let after = plane_exclusive_sum(both);
            entering_from[t] = after + both;
            entering_from[t + 1] = after + last;
        } else if unit < 64 {
            let t = 2 * (unit - 32);
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

    if comptime!(epilogue.skip || epilogue.gate) {
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

/// What the planes across have of a row's sum.
#[cube]
pub fn row_sum(sums: &SharedMemory<f32>, row: usize, #[comptime] slots: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for slot in 0..slots {
        sum += sums[comptime!(slot * CHUNK) + row];
    }
    sum
}
