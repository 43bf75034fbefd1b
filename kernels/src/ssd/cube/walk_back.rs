//! The gradients of one head, from its last chunk to its first, that of its state in registers.

use cubecl::prelude::*;

use super::decay::{self, Decays, sigmoid};
use super::matrix::{Eight, Fetched, Matrix, PLANE, Pair, Product};
use super::walk::{CHUNK, fetch_tokens, fits, nth};

/// Planes of a cube: twice those of a walk, for the registers, of which 8 planes would take 168 a unit
/// and leave the multiprocessor half empty.
pub const PLANES: usize = 16;

/// The planes that share a row of a product.
const SLOTS: usize = PLANES / 4;

/// All gradients of the chunks of a segment of one head, one chunk after the other.
///
/// Cubes: segments, batch times heads.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn walk_back<E: Float, S: Float>(
    x_blhp: &Tensor<Vector<E, Eight>>,
    b_blgn: &Tensor<Vector<E, Eight>>,
    c_blgn: &Tensor<Vector<E, Eight>>,
    dy_blhp: &Tensor<Vector<E, Eight>>,
    a_log_blh: &Tensor<f32>,
    // The states that enter, [b, h, chunks, p, n].
    states: &Tensor<Vector<E, Eight>>,
    // The gradients of the states that leave the segments, [b, h, segments, p, n].
    leaving: &ComptimeOption<Tensor<f32>>,
    dx_blhp: &mut Tensor<Vector<E, Pair>>,
    // For each head, where heads share a group to be added up.
    db_blhn: &mut Tensor<Vector<S, Pair>>,
    dc_blhn: &mut Tensor<Vector<S, Pair>>,
    da_log_blh: &mut Tensor<f32>,
    // The gradients of the states that enter the segments, [b, h, segments, p, n].
    ends: &mut Tensor<f32>,
    chunks_of_segment: usize,
    #[comptime] p: usize,
    #[comptime] n: usize,
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
    let mut from_row_on = Matrix::<E, Pair>::new(CHUNK, CHUNK, 2usize);
    let mut inside = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut enters = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut leaves = SharedMemory::<f32>::new(comptime!(SLOTS * CHUNK));
    let mut entering_from = SharedMemory::<f32>::new(CHUNK);
    let mut leaving_before = SharedMemory::<f32>::new(CHUNK);
    let mut through = SharedMemory::<f32>::new(PLANES);
    let mut next_a_logs = Array::<f32>::new(2usize);
    let mut next_x = Fetched::<E>::new(CHUNK, p, PLANES);
    let mut next_dy = Fetched::<E>::new(CHUNK, p, PLANES);
    let mut next_b = Fetched::<E>::new(CHUNK, n, PLANES);
    let mut next_c = Fetched::<E>::new(CHUNK, n, PLANES);
    let mut next_state = Fetched::<E>::new(p, n, PLANES);

    // Ones from the diagonal on: what a matrix is multiplied by to add up its rows from each one on.
    let mut ones = Product::new(CHUNK, CHUNK, PLANES);
    #[unroll]
    for i in 0..ones.pairs() {
        let mut pair = Vector::<f32, Pair>::new(0.0f32);
        if ones.row(i) <= ones.column(i) {
            pair[0] = 1.0f32;
        }
        if ones.row(i) <= ones.column(i) + 1 {
            pair[1] = 1.0f32;
        }
        ones.set(i, pair);
    }
    ones.store(&mut from_row_on);

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

    if comptime!(fits(p, n)) {
        let k = end - 1;
        decay::fetch(
            &mut next_a_logs,
            a_log_blh,
            batch,
            k * CHUNK,
            l - k * CHUNK,
            head,
        );
        fetch_tokens(&mut next_x, x_blhp, batch, head, k);
        fetch_tokens(&mut next_dy, dy_blhp, batch, head, k);
        fetch_tokens(&mut next_b, b_blgn, batch, group, k);
        fetch_tokens(&mut next_c, c_blgn, batch, group, k);
        next_state.fetch(states, (matrix * chunks + k) * p * n, n, p);
    }
    for i in 0..end - first {
        let k = nth(i, first, end, true);
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
            fetch_tokens(&mut next_x, x_blhp, batch, head, k);
            fetch_tokens(&mut next_dy, dy_blhp, batch, head, k);
            fetch_tokens(&mut next_b, b_blgn, batch, group, k);
            fetch_tokens(&mut next_c, c_blgn, batch, group, k);
            next_state.fetch(states, (matrix * chunks + k) * p * n, n, p);
        }
        decays.scan(&next_a_logs);
        next_x.store(&mut x);
        next_dy.store(&mut dy);
        next_b.store(&mut b);
        next_c.store(&mut c);
        next_state.store(&mut state_pn);
        dstate.store(&mut dstate_pn);
        sync_cube();
        next_dy.store_decayed(&mut decayed_dy, &decays, true);

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
        if dx.busy {
            #[unroll]
            for i in 0..dx.pairs() {
                let t = first_token + dx.row(i);
                if t < l {
                    let at = ((batch * l + t) * h + head) * p + dx.column(i);
                    dx_blhp[at / 2] = Vector::cast_from(dx.get(i));
                }
            }
        }

        let mut dc = Product::new(CHUNK, n, PLANES);
        dc.add(&dy, &state_pn, false, false, p);
        let sums = dc.decay_rows(&decays, &c, true);
        dc.store_row_sums(&sums, &mut enters, 0usize);
        dc.add(&dscores, &b, false, false, CHUNK);
        if dc.busy {
            #[unroll]
            for i in 0..dc.pairs() {
                let t = first_token + dc.row(i);
                if t < l {
                    let at = ((batch * l + t) * h + head) * n + dc.column(i);
                    dc_blhn[at / 2] = Vector::cast_from(dc.get(i));
                }
            }
        }

        let mut db = Product::new(CHUNK, n, PLANES);
        db.add(&x, &dstate_pn, false, false, p);
        db.decay_rows(&decays, &b, false);
        db.add(&dscores, &c, true, false, CHUNK);
        if db.busy {
            #[unroll]
            for i in 0..db.pairs() {
                let t = first_token + db.row(i);
                if t < l {
                    let at = ((batch * l + t) * h + head) * n + db.column(i);
                    db_blhn[at / 2] = Vector::cast_from(db.get(i));
                }
            }
        }

        // Only here: beside the products above, registers are few.
        if i + 1 < end - first {
            let k = k - 1;
            if comptime!(fits(p, n)) {
                decay::fetch(
                    &mut next_a_logs,
                    a_log_blh,
                    batch,
                    k * CHUNK,
                    l - k * CHUNK,
                    head,
                );
                fetch_tokens(&mut next_x, x_blhp, batch, head, k);
                fetch_tokens(&mut next_dy, dy_blhp, batch, head, k);
                fetch_tokens(&mut next_b, b_blgn, batch, group, k);
                fetch_tokens(&mut next_c, c_blgn, batch, group, k);
                next_state.fetch(states, (matrix * chunks + k) * p * n, n, p);
            }
        }

        // Paths inside that pass each token: from a row on, and of those the columns before it.
        let mut passing = Product::new(CHUNK, CHUNK, PLANES);
        passing.add(&from_row_on, &paths, false, false, CHUNK);
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
fn row_sum(sums: &SharedMemory<f32>, row: usize, #[comptime] slots: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for slot in 0..slots {
        sum += sums[comptime!(slot * CHUNK) + row];
    }
    sum
}
