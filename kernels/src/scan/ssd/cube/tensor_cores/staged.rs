//! The scan of one head, chunk by chunk, its state in registers, while the inputs of the next chunk are copied to shared
//! memory.
//!
//! A plane has 16 of a chunk's tokens. Its rows of C are left factors that stay in registers; its weights become left
//! factors where they are; and of 16 tokens before its own it takes scores, weights and products before it looks at the
//! next. So nothing but the state, which planes share by its rows, passes through shared memory between products, and
//! planes wait for each other once a chunk. Which 16 tokens a plane has changes with each chunk, because the first have
//! least to do: their plane makes the decays of the next chunk.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::chunk_decays::{ChunkDecays, Through, read_a_logs};
use super::copies::{HeadRows, copy_gate, copy_tokens, head_rows};
use super::epilogue::load_bias;
use super::forward::{CHUNK, Emit, Plan, nth};
use super::product::{Eight, PLANE, Pair, Product};
use super::staged_outputs::{add_tokens, finish, write_outputs};
use super::staged_states::{add_share, store_state, write_state};
use super::tile::Tile;

/// Planes of a cube, each with 16 tokens of a chunk.
pub const PLANES: usize = CHUNK / 16;
/// Units of a cube.
pub const UNITS: usize = PLANES * PLANE;

/// Bytes of shared memory of a multiprocessor, and those of each cube that it keeps to itself.
pub const MULTIPROCESSOR: usize = 228 << 10;
pub const RESERVED: usize = 1 << 10;

/// States in shared memory: with two, the next one is written while planes still read the one before.
pub fn state_tiles(p: usize, n: usize) -> usize {
    if p * n <= 64 * 64 { 2 } else { 1 }
}

/// Bytes of shared memory of the walk for outputs.
pub fn shared_memory(p: usize, n: usize, gate: bool) -> usize {
    let chunks = 2 * CHUNK * (p + n + p.max(n)) + if gate { CHUNK * p } else { 0 };
    let states = state_tiles(p, n) * p * n;
    // Decays; the gate's bias; the barriers and what keeps tiles to whole lines.
    2 * (chunks + states) + 8 * CHUNK * 4 + 4 * p + 256
}

/// Whether the walk takes such a state: it and the outputs stay in registers.
pub fn takes(p: usize, n: usize) -> bool {
    p * n <= 64 * 128
}

/// Cubes of the walk for outputs that a multiprocessor of an H100 or H200 holds: registers leave room for three or, where
/// a gate or a larger state takes more of them, for two.
pub fn held(p: usize, n: usize, gate: bool) -> usize {
    let by_memory = MULTIPROCESSOR / (shared_memory(p, n, gate) + RESERVED);
    let by_registers = if gate || p * n > 64 * 64 { 2 } else { 3 };
    by_memory.clamp(1, by_registers)
}

/// Steps 1 to 4 in one: the chunks of a segment of one head, one after the other.
///
/// Forwards `rows` is x and `columns` is B, and outputs pass through the skip and the gate. Backwards, for the gradient of
/// the state, they are dy and C.
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
    out: &mut Tensor<Vector<E, Eight>>,
    // The states [b, h, chunks, p, n] beside the outputs.
    states: &mut ComptimeOption<Tensor<Vector<E, Eight>>>,
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
    let stores = comptime!(of.emit != Emit::Last);
    let gate = comptime!(outputs && of.gate);
    let two_states = comptime!(state_tiles(of.p, of.n) == 2);
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
    let count = end - first;
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS_PLANE as usize;

    let x_rows = head_rows(rows_blhp, batch, head);
    let b_rows = head_rows(columns_blgn, batch, group);
    let c_rows = head_rows(c_blgn, batch, group);
    let y_rows = HeadRows {
        first: (batch * l * h + head) * comptime!(p / 8),
        step: h * comptime!(p / 8),
    };

    // Shared memory is for what this walk needs.
    let both = comptime!(2 * CHUNK);
    let mut x = Tile::<E>::new(both, p);
    let mut b = Tile::<E>::new(both, n);
    let mut c = Tile::<E>::new(
        comptime!(if outputs { both } else { 8 }),
        comptime!(Ord::max(p, n)),
    );
    let mut z = Tile::<E>::new(comptime!(if gate { CHUNK } else { 8 }), p);
    let mut state_pn = Tile::<E>::new(comptime!(if stores { state_tiles(p, n) * p } else { 8 }), n);
    let mut decays = ChunkDecays::new();
    let mut z_bias = SharedMemory::<f32>::new(p);
    if comptime!(gate) {
        load_bias(&mut z_bias, z_bias_c, head * p, p);
    }

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
    let mut a_logs = Array::<f32>::new(2usize);

    // Of a chunk: whether it has come, and whether all planes are done with the one before.
    let barrier = Barrier::shared(comptime!(UNITS as u32).runtime(), UNIT_POS == 0);
    let token = nth(0, first, end, of.backwards) * CHUNK;
    copy_tokens(&mut x, 0, rows_blhp, x_rows, token, l - token, p, UNITS);
    copy_tokens(&mut b, 0, columns_blgn, b_rows, token, l - token, n, UNITS);
    if comptime!(outputs) {
        copy_tokens(&mut c, 0, c_blgn, c_rows, token, l - token, n, UNITS);
    }
    barrier.commit_copy_async();
    // Whether what gates a plane's tokens has come, which is copied when the plane is done with that of the chunk before.
    let gate_here = Barrier::shared(comptime!(UNITS as u32).runtime(), UNIT_POS == 0);
    if comptime!(gate) {
        copy_gate(&mut z, z_blc, batch, head * p, token + plane * 16, p);
        gate_here.commit_copy_async();
        let _ = gate_here.arrive();
    }
    if plane == 0 {
        read_a_logs(&mut a_logs, a_log_blh, batch, token, l - token, head);
        decays.write(&a_logs, 0);
    }
    if comptime!(stores) {
        store_state(&state, &mut state_pn, 0);
    }

    for i in 0..count {
        barrier.arrive_and_wait();
        let k = nth(i, first, end, of.backwards);
        let at = i % 2 * CHUNK;
        let next_at = CHUNK - at;
        let mut state_at = 0usize;
        if comptime!(two_states) {
            state_at = i % 2 * p;
        }
        let role = (plane + i) % PLANES;
        let next = i + 1;
        if next < count {
            let token = nth(next, first, end, of.backwards) * CHUNK;
            copy_tokens(
                &mut x,
                next_at,
                rows_blhp,
                x_rows,
                token,
                l - token,
                p,
                UNITS,
            );
            copy_tokens(
                &mut b,
                next_at,
                columns_blgn,
                b_rows,
                token,
                l - token,
                n,
                UNITS,
            );
            if comptime!(outputs) {
                copy_tokens(&mut c, next_at, c_blgn, c_rows, token, l - token, n, UNITS);
            }
            if role == 0 {
                read_a_logs(&mut a_logs, a_log_blh, batch, token, l - token, head);
            }
        }
        barrier.commit_copy_async();

        if comptime!(of.emit == Emit::States) {
            write_state(&state_pn, state_at, out, matrix * chunks + k, p, n);
        }
        #[comptime]
        match states {
            ComptimeOption::Some(states) => {
                write_state(&state_pn, state_at, states, matrix * chunks + k, p, n);
            }
            ComptimeOption::None => {}
        }

        if comptime!(outputs) {
            let row = role * 16;
            let mut factors = Sequence::<Array<Vector<E, Pair>>>::new();
            #[unroll]
            for step in 0..comptime!(n / 16) {
                factors.push(c.left(at + row, comptime!(step * 16), false));
            }
            let mut y = Product::of_plane(row, p);
            #[unroll]
            for step in 0..comptime!(n / 16) {
                #[unroll]
                for j in 0..comptime!(p / 16) {
                    let both =
                        state_pn.right(comptime!(step * 16), state_at + comptime!(j * 16), true);
                    y.add_fragments(&factors, step, &both, j);
                }
            }
            let mut through = Sequence::<Through>::new();
            #[unroll]
            for down in 0..2usize {
                let t = row + comptime!(down * 8) + lane / 4;
                through.push(decays.through(at, t));
                let enter = Vector::new(decays.enter(at, t));
                #[unroll]
                for j in 0..comptime!(p / 8) {
                    let i = comptime!(2 * j + down);
                    y.set(i, y.get(i) * enter);
                }
            }
            for before in 0..role {
                add_tokens(
                    &mut y,
                    &factors,
                    &b,
                    &x,
                    &decays,
                    &through,
                    at,
                    row,
                    before * 16,
                    false,
                    p,
                    n,
                );
            }
            add_tokens(
                &mut y, &factors, &b, &x, &decays, &through, at, row, row, true, p, n,
            );
            if comptime!(gate) {
                gate_here.wait_parity(i as u32 % 2);
            }
            finish(&mut y, &x, &z, d_h, &z_bias, head, at, gate);
            if comptime!(gate) {
                sync_plane();
                if next < count {
                    let k = nth(next, first, end, of.backwards);
                    let token = k * CHUNK + (plane + next) % PLANES * 16;
                    copy_gate(&mut z, z_blc, batch, head * p, token, p);
                }
                gate_here.commit_copy_async();
                let _ = gate_here.arrive();
            }
            write_outputs(&y, &mut c, at + row, out, y_rows, k * CHUNK + row, l, p);
        }

        let decay = decays.whole(at);
        state.scale(decay);
        add_share(&mut state, &x, &b, &decays, at, of.backwards);
        total_decay *= decay;
        if next < count {
            if role == 0 {
                decays.write(&a_logs, next_at);
            }
            if comptime!(stores) {
                if comptime!(two_states) {
                    store_state(&state, &mut state_pn, next % 2 * p);
                } else {
                    // All planes have read the one before.
                    sync_cube();
                    store_state(&state, &mut state_pn, 0);
                }
            }
        }
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
